#include "isa.h"

#include <cstdlib>
#include <stdexcept>

#include "kernels.h"

namespace ockham {

bool supported(Isa isa) {
#if defined(__x86_64__)
    // The compiler's own check: it asks the operating system too whether it saves the registers.
    __builtin_cpu_init();
    switch (isa) {
        case Isa::portable:
            return true;
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                   __builtin_cpu_supports("f16c");
        case Isa::avx512:
            return supported(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
                   __builtin_cpu_supports("avx512bf16");
    }
    return false;
#else
    return isa == Isa::portable;
#endif
}

Isa detect() {
    for (const Isa isa : {Isa::avx512, Isa::avx2})
        if (supported(isa)) return isa;
    return Isa::portable;
}

const char* name(Isa isa) {
    switch (isa) {
        case Isa::avx2:
            return "avx2";
        case Isa::avx512:
            return "avx512";
        default:
            return "portable";
    }
}

Isa parse_isa(const std::string& text) {
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
        if (text != name(isa)) continue;
        if (!supported(isa))
            throw std::runtime_error("this processor lacks the instructions of '" + text +
                                     "'; the best that it has is '" + name(detect()) + "'.");
        return isa;
    }
    throw std::runtime_error("no instruction set is called '" + text +
                             "': choose avx512, avx2 or portable.");
}

Isa chosen() {
    const char* forced = std::getenv("OCKHAM_ISA");
    if (forced == nullptr || *forced == '\0') return detect();
    try {
        return parse_isa(forced);
    } catch (const std::runtime_error& error) {
        throw std::runtime_error(std::string("OCKHAM_ISA: ") + error.what());
    }
}

const LinearKernels& linear_kernels(Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::avx512) return avx512::linear_kernels;
    if (isa == Isa::avx2) return avx2::linear_kernels;
#endif
    return portable::linear_kernels;
}

const LimitKernels& limit_kernels(Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::avx512) return avx512::limit_kernels;
    if (isa == Isa::avx2) return avx2::limit_kernels;
#endif
    return portable::limit_kernels;
}


const PackKernels& pack_kernels(Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::avx512) return avx512::pack_kernels;
    if (isa == Isa::avx2) return avx2::pack_kernels;
#endif
    return portable::pack_kernels;
}

}  // namespace ockham
