// Programs: the operations of ockham.kernels.ops, read field by field and checked.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bind/arrays.h"
#include "bind/bound_executor.h"
#include "bind/matrix.h"
#include "executor.h"
#include "kernels/threads.h"
#include "ops/fields.h"
#include "ops/operation.h"
#include "state/planes.h"

namespace nb = nanobind;

namespace ockham {

namespace {

// The fields of an operation of ockham.kernels.ops, or of a record that it holds.
class PythonFields final : public ops::Fields {
   public:
    // `matrix_of` gives the native matrices of a linear; `owners` keeps them, and so their memory, alive.
    PythonFields(nb::object record, const nb::callable& matrix_of, std::vector<nb::object>& owners)
        : record_(std::move(record)), matrix_of_(matrix_of), owners_(owners) {}

    bool none(const char* field) const override { return record_.attr(field).is_none(); }
    bool flag(const char* field) const override { return nb::cast<bool>(record_.attr(field)); }
    int64_t integer(const char* field) const override {
        return nb::cast<int64_t>(record_.attr(field));
    }
    float number(const char* field) const override { return nb::cast<float>(record_.attr(field)); }
    std::string text(const char* field) const override {
        return nb::cast<std::string>(record_.attr(field));
    }
    std::vector<float> floats(const char* field) const override {
        if (none(field)) return {};
        const auto view = nb::cast<Vector<float>>(record_.attr(field));
        return std::vector<float>(view.data(), view.data() + view.size());
    }
    std::unique_ptr<ops::Fields> record(const char* field) const override {
        return std::make_unique<PythonFields>(record_.attr(field), matrix_of_, owners_);
    }

    PackedMatrix matrix(const char* field) const override { return packed(record_.attr(field)); }
    std::vector<PackedMatrix> matrices(const char* field) const override {
        std::vector<PackedMatrix> result;
        for (nb::handle linear : record_.attr(field)) {
            result.push_back(packed(linear));
            if (result.back().correction != nullptr)
                throw std::invalid_argument("the products of routed experts cannot be corrected.");
        }
        return result;
    }
    ops::Stack stack(const char* field) const override {
        std::vector<PackedMatrix> result;
        const auto parts = nb::cast<nb::list>(matrix_of_(record_.attr(field)));
        for (nb::handle part : parts) result.push_back(owned(part));
        return ops::Stack(std::move(result));
    }

   private:
    PackedMatrix packed(nb::handle linear) const {
        if (linear.is_none()) return {};
        const auto parts = nb::cast<nb::list>(matrix_of_(linear));
        if (nb::len(parts) != 1)
            throw std::invalid_argument(
                "the rows of a matrix stand in several formats, which is only supported for "
                "projections of attention and dense feed-forward layers; choose a --quantization.");
        return owned(parts[0]);
    }
    PackedMatrix owned(nb::handle matrix) const {
        owners_.push_back(nb::borrow(matrix));
        return nb::cast<const Matrix&>(matrix).packed;
    }

    nb::object record_;
    const nb::callable& matrix_of_;
    std::vector<nb::object>& owners_;
};

}  // namespace

std::unique_ptr<BoundExecutor> make_executor(nb::object pool, Isa isa, nb::object planes,
                                             nb::sequence program, nb::callable matrix_of) {
    require(isa);
    auto bound = std::make_unique<BoundExecutor>();
    Program::Operations operations;
    for (nb::handle op : program) {
        const auto name = nb::cast<std::string>(nb::handle(op.type()).attr("__name__"));
        const PythonFields fields(nb::borrow(op), matrix_of, bound->matrices);
        operations.push_back(ops::read_operation(name, fields));
    }
    bound->executor = std::make_unique<Executor>(nb::cast<ThreadPool&>(pool), isa,
                                                 nb::cast<Planes&>(planes), std::move(operations));
    bound->pool = std::move(pool);
    bound->planes = std::move(planes);
    return bound;
}

}  // namespace ockham
