// Adapters: what is added to the products of a program, packed.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "adapter.h"
#include "bind/arrays.h"
#include "bind/bindings.h"
#include "bind/bound_executor.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

namespace {

LowRank shape_of(int64_t outputs, int64_t inputs, int64_t rank, FactorType element) {
    if (outputs < 1 || inputs < 1 || rank < 1)
        throw std::invalid_argument("a sum of low rank is never empty.");
    LowRank shape;
    shape.inputs = inputs;
    shape.rank = rank;
    shape.outputs = outputs;
    shape.element = element;
    return shape;
}

void add(Adapter& self, const std::string& role, int64_t first, float scale, Table<float> a,
         Table<float> b, FactorType element) {
    if (a.shape(0) != b.shape(1))
        throw std::invalid_argument("the two matrices of a sum have different ranks.");
    LowRank shape = shape_of(static_cast<int64_t>(b.shape(0)), static_cast<int64_t>(a.shape(1)),
                             static_cast<int64_t>(a.shape(0)), element);
    shape.scale = scale;
    nb::gil_scoped_release release;
    self.add(role, first, shape, a.data(), b.data());
}

}  // namespace

void bind_adapters(nb::module_& module) {
    nb::enum_<FactorType>(module, "FactorType")
        .value("FP32", FactorType::fp32)
        .value("BF16", FactorType::bf16)
        .value("INT8", FactorType::int8);
    nb::class_<Adapter>(module, "Adapter")
        .def("add", &add, "role"_a, "first"_a, "scale"_a, "a"_a, "b"_a, "element"_a,
             "Adds scale * B A to the outputs of a matrix from `first` on.")
        .def_prop_ro("nbytes", &Adapter::bytes);
    module.def(
        "adapter",
        [](BoundExecutor& executor, size_t nbytes) {
            return new Adapter(executor.executor->program(), nbytes);
        },
        nb::rv_policy::take_ownership, nb::keep_alive<0, 1>(), "executor"_a, "nbytes"_a,
        "An adapter of an executor's program, empty, with room for so many bytes.");
    module.def(
        "low_rank_bytes",
        [](int64_t outputs, int64_t inputs, int64_t rank, FactorType element) {
            return shape_of(outputs, inputs, rank, element).bytes();
        },
        "outputs"_a, "inputs"_a, "rank"_a, "element"_a, "Bytes of a packed sum of low rank.");
}

}  // namespace ockham
