#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "bind/bindings.h"
#include "bind/matrix.h"
#include "kernels/blocks.h"
#include "kernels/linear.h"
#include "kernels/pack.h"
#include "kernels/threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

namespace {

using Input = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

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

Matrix make_matrix(Kind kind, int64_t outputs, int64_t inputs, nb::object weight, int64_t group,
                   nb::object scale, nb::object zero) {
    if (outputs < 1 || inputs < 1) throw std::invalid_argument("a packed matrix is never empty.");
    if (kind == Kind::int8 && group != 0 && group != int8_group)
        throw std::invalid_argument("int8 has groups of " + std::to_string(int8_group) +
                                    " inputs, or 0 for one scale for each output.");
    if (kind >= Kind::q8_0 && inputs % block_shape(kind).inputs)
        throw std::invalid_argument("blocks of " + std::to_string(block_shape(kind).inputs) +
                                    " inputs do not divide the number of inputs.");
    if (kind == Kind::int4 && (group < 32 || group > 256 || group % 32 || inputs % group))
        throw std::invalid_argument("int4 needs groups of a multiple of 32 up to 256 inputs, which "
                                    "divides the number of inputs.");
    Matrix matrix;
    const bool grouped = kind == Kind::int8 || kind == Kind::int4;
    matrix.packed = {kind, outputs, inputs, grouped ? group : 0, nullptr, nullptr, nullptr};
    matrix.packed.weight = checked(weight, matrix.packed.weight_bytes(), "weight");
    matrix.weight = weight;
    if (matrix.packed.scale_bytes()) {
        matrix.packed.scale = checked(scale, matrix.packed.scale_bytes(), "scale");
        matrix.scale = scale;
    }
    if (kind == Kind::int4 && !zero.is_none()) {
        matrix.packed.zero = checked(zero, matrix.packed.scale_bytes() / 2, "zero");
        matrix.zero = zero;
    }
    return matrix;
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

}  // namespace

void bind_linear(nb::module_& module) {
    nb::enum_<Kind>(module, "Kind")
        .value("FP32", Kind::fp32)
        .value("BF16", Kind::bf16)
        .value("INT8", Kind::int8)
        .value("INT4", Kind::int4)
        .value("Q8_0", Kind::q8_0)
        .value("Q5_0", Kind::q5_0)
        .value("Q4_1", Kind::q4_1)
        .value("Q5_1", Kind::q5_1)
        .value("Q4_K", Kind::q4_k)
        .value("Q5_K", Kind::q5_k)
        .value("Q6_K", Kind::q6_k);
    nb::class_<Matrix>(module, "Matrix")
        .def_prop_ro("outputs", [](const Matrix& self) { return self.packed.outputs; })
        .def_prop_ro("inputs", [](const Matrix& self) { return self.packed.inputs; })
        .def_prop_ro("kind", [](const Matrix& self) { return self.packed.kind; })
        .def_prop_ro("nbytes", [](const Matrix& self) {
            return self.packed.weight_bytes() + self.packed.scale_bytes() + self.packed.zero_bytes();
        });
    module.def("matrix", &make_matrix, "kind"_a, "outputs"_a, "inputs"_a, "weight"_a,
               "group"_a = 0, "scale"_a = nb::none(), "zero"_a = nb::none(),
               "A matrix over packed arrays, which come as flat uint8 views and are kept alive.");
    module.def("linear", &product, "pool"_a, "isa"_a, "matrix"_a, "x"_a, "bias"_a = nb::none());
    module.def("prepared", &prepared, "pool"_a, "isa"_a, "matrix"_a, "x"_a);
    module.def("time_products", &time_products, "pool"_a, "isa"_a, "matrices"_a, "rows"_a,
               "repeats"_a);
    module.def("rows", &rows_of, "matrix"_a, "outputs"_a);
    module.def(
        "pack_int8",
        [](ThreadPool& pool, Isa isa, Input rows,
           nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> weight,
           nb::ndarray<uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> scale) {
            require(isa);
            const int64_t outputs = rows.shape(0), inputs = rows.shape(1);
            const int64_t groups = (inputs + int8_group - 1) / int8_group;
            if (outputs % panel_outputs || static_cast<int64_t>(scale.size()) != outputs * groups ||
                static_cast<int64_t>(weight.size()) != outputs * groups * int8_group)
                throw std::invalid_argument("the arrays do not hold whole panels of these rows.");
            nb::gil_scoped_release release;
            pack_int8(pool, isa, rows.data(), outputs / panel_outputs, inputs, weight.data(),
                      scale.data());
        },
        "pool"_a, "isa"_a, "rows"_a, "weight"_a, "scale"_a);
    module.def(
        "pack_int4",
        [](ThreadPool& pool, Isa isa, Input rows, int64_t group,
           nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> weight,
           nb::ndarray<uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> scale) {
            require(isa);
            const int64_t outputs = rows.shape(0), inputs = rows.shape(1);
            if (outputs % panel_outputs || group < 32 || group % 32 || inputs % group ||
                static_cast<int64_t>(scale.size()) != outputs * (inputs / group) ||
                static_cast<int64_t>(weight.size()) != outputs * inputs / 2)
                throw std::invalid_argument("the arrays do not hold whole panels of these rows.");
            nb::gil_scoped_release release;
            pack_int4(pool, isa, rows.data(), outputs / panel_outputs, inputs, group, weight.data(),
                      scale.data());
        },
        "pool"_a, "isa"_a, "rows"_a, "group"_a, "weight"_a, "scale"_a);
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
    module.def(
        "pack_blocks",
        [](ThreadPool& pool, Kind kind,
           nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> codes,
           const Bytes& scales, std::optional<Bytes> minima, std::optional<Bytes> group_scales,
           std::optional<Bytes> group_minima,
           nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> weight) {
            const BlockShape shape = block_shape(kind);
            const int64_t outputs = codes.shape(0), inputs = codes.shape(1);
            const int64_t blocks = shape.inputs ? outputs * (inputs / shape.inputs) : 0;
            const int64_t groups = shape.scale_group ? shape.inputs / shape.scale_group : 0;
            const auto holds = [&](const std::optional<Bytes>& array, int64_t of_a_block) {
                return static_cast<int64_t>(array ? array->size() : 0) == blocks * of_a_block;
            };
            if (!blocks || outputs % panel_outputs || inputs % shape.inputs || !holds(scales, 2) ||
                !holds(minima, shape.minima ? 2 : 0) || !holds(group_scales, groups) ||
                !holds(group_minima, shape.minima ? groups : 0) ||
                static_cast<int64_t>(weight.size()) != blocks / panel_outputs * shape.bytes())
                throw std::invalid_argument("the arrays do not hold whole panels of such blocks.");
            const auto data = [](const std::optional<Bytes>& array) {
                return array ? array->data() : nullptr;
            };
            const BlockFields rows{codes.data(), scales.data(), data(minima), data(group_scales),
                                   data(group_minima)};
            nb::gil_scoped_release release;
            pack_blocks(pool, kind, rows, outputs / panel_outputs, inputs, weight.data());
        },
        "pool"_a, "kind"_a, "codes"_a, "scales"_a, "minima"_a.none(), "group_scales"_a.none(),
        "group_minima"_a.none(), "weight"_a,
        "Packs whole panels of rows of blocks; all but the codes are flat views of bytes: see pack.h.");
    module.def(
        "to_panels",
        [](ThreadPool& pool, nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig> weight, int64_t outputs,
           int64_t inputs, int unit_bytes) {
            if (outputs % panel_outputs ||
                static_cast<int64_t>(weight.size()) != outputs * inputs * unit_bytes)
                throw std::invalid_argument("the array does not hold whole panels.");
            uint8_t* data = weight.data();
            nb::gil_scoped_release release;
            to_panels(pool, data, outputs, inputs, unit_bytes);
        },
        "pool"_a, "weight"_a, "outputs"_a, "units"_a, "unit_bytes"_a,
        "Turns rows into panels, in place: see pack.h.");
}

}  // namespace ockham
