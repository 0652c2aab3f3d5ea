// The functions of kernels/functions.h by name, for tests.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "isa/isa.h"
#include "kernels/layer_kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

void bind_functions(nb::module_& module) {
    module.def(
        "row_function",
        [](Isa isa, const std::string& name, Vector<float> x) {
            require(isa);
            const RowKernels& kernels = row_kernels(isa);
            Floats y{std::make_unique<Buffer>(), 1, static_cast<int64_t>(x.size())};
            float* to = y.memory->take<float>(y.columns);
            if (name == "exp")
                kernels.exponential(x.data(), y.columns, to);
            else if (name == "tanh")
                kernels.hyperbolic_tangent(x.data(), y.columns, to);
            else if (name == "gelu")
                kernels.activated[static_cast<int>(Activation::gelu)](x.data(), y.columns, to);
            else
                throw std::invalid_argument("there is no function " + name + ".");
            return array_of(std::move(y)).attr("ravel")();
        },
        "isa"_a, "name"_a, "x"_a, "exp, tanh or gelu of every value, as the kernels compute it.");
}

}  // namespace ockham
