#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include "bind/bindings.h"
#include "isa/isa.h"
#include "kernels/machine.h"
#include "kernels/threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

void bind_machine(nb::module_& module) {
    nb::enum_<Isa>(module, "Isa")
        .value("PORTABLE", Isa::portable)
        .value("AVX2", Isa::avx2)
        .value("AVX512", Isa::avx512)
        .value("AMX", Isa::amx);
    module.def("isa_name", &name, "isa"_a);
    module.def("bits_of", &bits_of, "isa"_a, "The instruction set whose bits `isa` gives.");
    module.def("parse_isa", &parse_isa, "name"_a);
    module.def("supported", &supported, "isa"_a);
    module.def("detect", &detect);
    module.def("chosen", &chosen, "What OCKHAM_ISA names, else the best that runs here.");

    nb::class_<ThreadPool>(module, "ThreadPool")
        .def(
            "__init__",
            [](ThreadPool* self, int threads, int spin_us) {
                new (self) ThreadPool(threads, std::chrono::microseconds(spin_us));
            },
            "threads"_a, "spin_us"_a = 100)
        .def_prop_ro("size", &ThreadPool::size);

    nb::enum_<Rate>(module, "Rate")
        .value("FP32", Rate::fp32)
        .value("BF16", Rate::bf16)
        .value("INT8", Rate::int8);
    module.def(
        "arithmetic_rate",
        [](ThreadPool& pool, Isa isa, Rate rate, double seconds) {
            require(isa);
            nb::gil_scoped_release release;
            return arithmetic_rate(pool, isa, rate, seconds);
        },
        "pool"_a, "isa"_a, "rate"_a, "seconds"_a);
    module.def(
        "read_rate",
        [](ThreadPool& pool, Isa isa, nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig> memory) {
            require(isa);
            const void* from = memory.data();
            const int64_t bytes = static_cast<int64_t>(memory.size());
            nb::gil_scoped_release release;
            return read_rate(pool, isa, from, bytes);
        },
        "pool"_a, "isa"_a, "memory"_a);
}

}  // namespace ockham
