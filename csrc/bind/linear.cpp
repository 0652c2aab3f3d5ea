#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <vector>

#include "bind/bindings.h"
#include "bind/matrix.h"
#include "kernels/linear.h"
#include "kernels/pack.h"
#include "kernels/threads.h"
#include "kinds/kind.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

namespace {

using Input = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Factors = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(size_t bytes) {
    const size_t whole = (bytes + 63) / 64 * 64;
    return Memory(std::aligned_alloc(64, whole ? whole : 64));
}

template <class Value>
using Table = nb::ndarray<nb::numpy, Value, nb::ndim<2>>;

template <class Value>
Table<Value> array_of(Memory memory, size_t rows, size_t columns) {
    void* data = memory.release();
    nb::capsule owner(data, [](void* owned) noexcept { std::free(owned); });
    const size_t shape[] = {rows, columns};
    return Table<Value>(data, 2, shape, owner);
}

const void* checked(const nb::object& array, size_t bytes, const char* what) {
    const Bytes view = nb::cast<Bytes>(array);
    if (view.size() != bytes)
        throw std::invalid_argument(std::string("the packed ") + what + " should be " +
                                    std::to_string(bytes) + " bytes, not " +
                                    std::to_string(view.size()) + ".");
    if (reinterpret_cast<uintptr_t>(view.data()) % 64)
        throw std::invalid_argument(std::string("the packed ") + what +
                                    " should start at a multiple of 64 bytes.");
    return view.data();
}

Matrix make_matrix(const std::string& kind, int64_t outputs, int64_t inputs, nb::object weight,
                   int64_t group, nb::object scale, nb::object zero) {
    Matrix matrix;
    matrix.packed = matrix_of(kind, outputs, inputs, group, !zero.is_none());
    const auto hold = [](const nb::object& array, size_t bytes, const char* what, nb::object& owner,
                         const void*& data) {
        if (bytes == 0) return;
        data = checked(array, bytes, what);
        owner = array;
    };
    hold(weight, matrix.packed.weight_bytes, "weight", matrix.weight, matrix.packed.weight);
    hold(scale, matrix.packed.scale_bytes, "scale", matrix.scale, matrix.packed.scale);
    hold(zero, matrix.packed.zero_bytes, "zero", matrix.zero, matrix.packed.zero);
    return matrix;
}

Matrix corrected(const Matrix& matrix, Codes a, Codes b, Factors factors) {
    LowRank shape;
    shape.inputs = matrix.packed.inputs;
    shape.outputs = matrix.packed.outputs;
    shape.rank = static_cast<int64_t>(factors.shape(0));
    shape.element = FactorType::int8;
    if (shape.rank < 1 || static_cast<int64_t>(a.shape(0)) != shape.rank ||
        static_cast<int64_t>(a.shape(1)) != shape.inputs ||
        static_cast<int64_t>(b.shape(0)) != shape.outputs ||
        static_cast<int64_t>(b.shape(1)) != shape.rank)
        throw std::invalid_argument("a correction has another shape than its matrix.");
    auto held = std::make_shared<HeldLowRank>();
    held->sum = pack_low_rank_codes(shape, a.data(), b.data(), factors.data(),
                                    held->memory.take<uint8_t>(static_cast<int64_t>(shape.bytes())));
    Matrix result = matrix;
    result.packed.correction = &held->sum;
    result.correction = std::move(held);
    return result;
}

using Shapes = std::vector<std::tuple<std::string, std::string, std::vector<int64_t>>>;

Shapes packed_arrays(const std::string& kind, int64_t outputs, int64_t inputs, int64_t group, bool zeros) {
    const PackedMatrix matrix = matrix_of(kind, outputs, inputs, group, zeros);
    Shapes all;
    for (const PackedArray& array : matrix.kind->arrays(matrix, zeros))
        all.emplace_back(array.name, array.dtype, array.shape);
    return all;
}

// Rows of flat bytes, by the name of the field.
void pack(ThreadPool& pool, const Matrix& matrix, int64_t first, int64_t rows,
          const std::map<std::string, Bytes>& values) {
    const PackedMatrix& packed = matrix.packed;
    if (rows < 0 || first < 0 || first % panel_outputs || rows % panel_outputs ||
        first + rows > packed.panels() * panel_outputs)
        throw std::invalid_argument("rows are packed by whole panels of the matrix.");
    std::vector<const uint8_t*> fields;
    for (const RowField& field : packed.kind->fields(packed)) {
        const auto found = values.find(field.name);
        if (found == values.end() ||
            static_cast<int64_t>(found->second.size()) != rows * field.row_bytes)
            throw std::invalid_argument("the field " + std::string(field.name) + " does not hold " +
                                        std::to_string(rows) + " rows of " +
                                        std::to_string(field.row_bytes) + " bytes.");
        fields.push_back(found->second.data());
    }
    if (fields.size() != values.size())
        throw std::invalid_argument("there are fields that such a matrix does not have.");
    nb::gil_scoped_release release;
    pack_rows(pool, packed, first / panel_outputs, rows / panel_outputs, fields);
}

void quantise(ThreadPool& pool, Isa isa, const std::string& kind, int64_t group, Input rows,
              nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> codes,
              nb::ndarray<uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> scales) {
    require(isa);
    const int64_t count = static_cast<int64_t>(rows.shape(0));
    if (count == 0) return;
    const PackedMatrix matrix = matrix_of(kind, count, static_cast<int64_t>(rows.shape(1)), group);
    if (matrix.kind->quantise[static_cast<int>(isa)] == nullptr)
        throw std::invalid_argument("the kind " + kind + " does not quantise weights.");
    const std::vector<RowField> fields = matrix.kind->fields(matrix);
    if (static_cast<int64_t>(codes.size()) != count * fields[0].row_bytes ||
        static_cast<int64_t>(scales.size()) * 2 != count * fields[1].row_bytes)
        throw std::invalid_argument("the arrays do not hold the codes and scales of these rows.");
    nb::gil_scoped_release release;
    quantise_rows(pool, isa, matrix, rows.data(), count, codes.data(), scales.data());
}

void check_input(const Matrix& matrix, const Input& x) {
    if (static_cast<int64_t>(x.shape(1)) != matrix.packed.inputs)
        throw std::invalid_argument("the input has " + std::to_string(x.shape(1)) +
                                    " columns, but the matrix " +
                                    std::to_string(matrix.packed.inputs) + ".");
}

Table<float> product(ThreadPool& pool, Isa isa, const Matrix& matrix, Input x,
                   std::optional<nb::ndarray<const float, nb::ndim<1>, nb::c_contig>> bias) {
    check_input(matrix, x);
    if (bias && static_cast<int64_t>(bias->shape(0)) != matrix.packed.outputs)
        throw std::invalid_argument("the bias does not have one value for each output.");
    require(isa);
    const int64_t rows = static_cast<int64_t>(x.shape(0)), outputs = matrix.packed.outputs;
    const InputForm form = input_form(matrix.packed);
    const Memory scratch = allocate(form.bytes(rows));
    Memory y = allocate(sizeof(float) * rows * outputs);
    {
        nb::gil_scoped_release release;
        const PreparedInput input(form, rows, scratch.get());
        prepare(pool, isa, input, x.data(), matrix.packed.inputs);
        linear(pool, isa, matrix.packed, input, static_cast<float*>(y.get()), outputs,
               bias ? bias->data() : nullptr);
    }
    return array_of<float>(std::move(y), rows, outputs);
}

// The parts of prepare(): values as bytes, scales, offsets. For tests.
nb::typed<nb::tuple, Table<uint8_t>, Table<float>, Table<int32_t>> prepared(ThreadPool& pool, Isa isa, const Matrix& matrix, Input x) {
    require(isa);
    check_input(matrix, x);
    const int64_t rows = static_cast<int64_t>(x.shape(0));
    const InputForm form = input_form(matrix.packed);
    const Memory scratch = allocate(form.bytes(rows));
    const PreparedInput input(form, rows, scratch.get());
    prepare(pool, isa, input, x.data(), matrix.packed.inputs);
    const auto copy = [&](auto* from, size_t columns) {
        using Value = std::remove_pointer_t<decltype(from)>;
        if (from == nullptr) columns = 0;
        const size_t bytes = rows * columns * sizeof(Value);
        Memory memory = allocate(bytes);
        if (bytes) std::memcpy(memory.get(), from, bytes);
        return array_of<Value>(std::move(memory), rows, columns);
    };
    return nb::make_tuple(copy(input.values, form.row_bytes()), copy(input.scales, form.groups()),
                          copy(input.offsets, form.offset_words()));
}

// A product timed without Python in between: seconds of each of `repeats` calls, the matrices taken in
// turn, so that a list of them larger than the caches is read from memory.
std::vector<double> time_products(ThreadPool& pool, Isa isa,
                                  nb::typed<nb::list, Matrix> matrices, int64_t rows, int repeats) {
    require(isa);
    std::vector<const Matrix*> all;
    for (nb::handle each : matrices) all.push_back(nb::cast<const Matrix*>(each));
    if (all.empty()) throw std::invalid_argument("there is nothing to time.");
    const InputForm form = input_form(all[0]->packed);
    const int64_t outputs = all[0]->packed.outputs;
    for (const Matrix* each : all)
        if (!(input_form(each->packed) == form) || each->packed.outputs != outputs)
            throw std::invalid_argument("the matrices to time should have one shape.");
    const Memory scratch = allocate(form.bytes(rows)), y = allocate(sizeof(float) * rows * outputs);
    std::vector<float> x(rows * form.inputs);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 2654435761u % 1000) - 500.0f;
    const PreparedInput input(form, rows, scratch.get());
    std::vector<double> seconds;
    {
        nb::gil_scoped_release release;
        prepare(pool, isa, input, x.data(), form.inputs);
        for (int i = 0; i < repeats; ++i) {
            const auto start = std::chrono::steady_clock::now();
            linear(pool, isa, all[i % all.size()]->packed, input, static_cast<float*>(y.get()),
                   outputs, nullptr);
            seconds.push_back(
                std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        }
    }
    return seconds;
}

Table<float> rows_of(const Matrix& matrix,
                   nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig> outputs) {
    const int64_t inputs = matrix.packed.inputs;
    Memory rows = allocate(sizeof(float) * outputs.size() * inputs);
    for (size_t i = 0; i < outputs.size(); ++i) {
        const int64_t output = outputs.data()[i];
        if (output < 0 || output >= matrix.packed.outputs)
            throw std::invalid_argument("row " + std::to_string(output) + " does not exist.");
        unpack_row(matrix.packed, output, static_cast<float*>(rows.get()) + i * inputs);
    }
    return array_of<float>(std::move(rows), outputs.size(), inputs);
}

Isa product_bits(const std::string& kind, Isa isa) {
    const LinearKind* found = find_kind(kind);
    if (found == nullptr)
        throw std::invalid_argument("there are no kernels for matrices of the kind " + kind + ".");
    return found->product_bits(isa);
}

}  // namespace

void bind_linear(nb::module_& module) {
    nb::class_<Matrix>(module, "Matrix")
        .def_prop_ro("outputs", [](const Matrix& self) { return self.packed.outputs; })
        .def_prop_ro("inputs", [](const Matrix& self) { return self.packed.inputs; })
        .def_prop_ro("kind", [](const Matrix& self) { return std::string(self.packed.kind->name); })
        .def_prop_ro("nbytes", [](const Matrix& self) {
            return self.packed.weight_bytes + self.packed.scale_bytes + self.packed.zero_bytes;
        });
    module.def("matrix", &make_matrix, "kind"_a, "outputs"_a, "inputs"_a, "weight"_a,
               "group"_a = 0, "scale"_a = nb::none(), "zero"_a = nb::none(),
               "A matrix over packed arrays, which come as flat uint8 views and are kept alive.");
    module.def("linear", &product, "pool"_a, "isa"_a, "matrix"_a, "x"_a, "bias"_a = nb::none());
    module.def("prepared", &prepared, "pool"_a, "isa"_a, "matrix"_a, "x"_a);
    module.def("time_products", &time_products, "pool"_a, "isa"_a, "matrices"_a, "rows"_a,
               "repeats"_a);
    module.def("rows", &rows_of, "matrix"_a, "outputs"_a);
    module.def("kinds", &kind_names, "The kinds of matrices that there are kernels for.");
    module.def("product_bits", &product_bits, "kind"_a, "isa"_a,
               "The instruction set whose bits products with matrices of a kind have on `isa`.");
    module.def("corrected", &corrected, "matrix"_a, "a"_a, "b"_a, "factors"_a,
               "The matrix with the sum b (factors * (a x)) of low rank, which operations of a program "
               "add to its products; `linear` does not.");
    module.def("packed_arrays", &packed_arrays, "kind"_a, "outputs"_a, "inputs"_a, "group"_a = 0,
               "zeros"_a = false, "Name, dtype and shape of each array of a packed matrix.");
    module.def("pack", &pack, "pool"_a, "matrix"_a, "first"_a, "rows"_a, "values"_a,
               "Lays out whole panels of rows, from row `first` on, in the arrays of a matrix, which must "
               "be writable. `values`: flat bytes of each field of a row.");
    module.def("quantise", &quantise, "pool"_a, "isa"_a, "kind"_a, "group"_a, "rows"_a, "codes"_a,
               "scales"_a, "Codes and scales (as fp16 bits) of rows of weights, both flat.");
    module.def(
        "search_codes",
        [](ThreadPool& pool, Input groups, int middle,
           nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu> divisors,
           nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> codes,
           nb::ndarray<uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> scale) {
            const int64_t count = groups.shape(0), group = groups.shape(1);
            if (group % 16 || middle < 1 || middle > 128 ||
                static_cast<int64_t>(codes.shape(0)) != count ||
                static_cast<int64_t>(codes.shape(1)) != group ||
                static_cast<int64_t>(scale.size()) != count)
                throw std::invalid_argument("the arrays do not hold the codes of these groups.");
            nb::gil_scoped_release release;
            search_codes(pool, groups.data(), count, group, middle, divisors.data(),
                         static_cast<int64_t>(divisors.size()), codes.data(), scale.data());
        },
        "pool"_a, "groups"_a, "middle"_a, "divisors"_a, "codes"_a, "scale"_a,
        "Codes and scales of groups of weights (G, inputs): see pack.h.");
}

}  // namespace ockham
