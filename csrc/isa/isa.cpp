#include "isa/isa.h"

#include <cstdlib>
#include <stdexcept>

#if defined(OCKHAM_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/kernels.h"

namespace ockham {

namespace {

#if defined(OCKHAM_AMX)
// Whether the processor multiplies tiles of bytes and of bf16, the system saves them, and this process may use
// them: Linux gives the memory for that to processes that ask, for all their threads and children.
bool have_tiles() {
    constexpr unsigned tiles = 1u << 24 | 1u << 25 | 1u << 22;  // CPUID 7.0, EDX: TILE, INT8, BF16
    constexpr unsigned saved = 3u << 17;                        // XCR0: TILECFG and TILEDATA
    constexpr long ask_for = 0x1023, tile_data = 18;               // ARCH_REQ_XCOMP_PERM
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if ((d & tiles) != tiles) return false;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & saved) == saved && syscall(SYS_arch_prctl, ask_for, tile_data) == 0;
}
#endif

// Whether this processor and its operating system have the instructions.
bool present(Isa isa) {
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
            return present(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
                   __builtin_cpu_supports("avx512bf16");
        case Isa::amx: {
#if defined(OCKHAM_AMX)
            static const bool tiles = present(Isa::avx512) && have_tiles();
            return tiles;
#else
            return false;
#endif
        }
    }
    return false;
#else
    return isa == Isa::portable;
#endif
}

constexpr Isa kIsas[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::amx};

// What OCKHAM_ISA names, or an empty text.
std::string wanted() {
    const char* text = std::getenv("OCKHAM_ISA");
    return text == nullptr ? "" : text;
}

// Whether OCKHAM_ISA names a lesser instruction set, so that this one must not be used. A name that
// is none hides nothing: chosen() refuses it.
bool hidden(Isa isa) {
    for (const Isa named : kIsas)
        if (wanted() == name(named)) return isa > named;
    return false;
}

}  // namespace

bool supported(Isa isa) { return present(isa) && !hidden(isa); }

void require(Isa isa) {
    if (supported(isa)) return;
    throw std::invalid_argument(std::string("the instruction set ") + name(isa) +
                                " cannot be used: this processor lacks it, or OCKHAM_ISA hides it.");
}

Isa detect() {
    for (const Isa isa : {Isa::amx, Isa::avx512, Isa::avx2})
        if (supported(isa)) return isa;
    return Isa::portable;
}

const char* name(Isa isa) {
    switch (isa) {
        case Isa::avx2:
            return "avx2";
        case Isa::avx512:
            return "avx512";
        case Isa::amx:
            return "amx";
        default:
            return "portable";
    }
}

Isa bits_of(Isa isa) { return isa == Isa::amx ? Isa::avx512 : isa; }

Isa parse_isa(const std::string& text) {
    for (const Isa isa : kIsas)
        if (text == name(isa)) return isa;
    throw std::runtime_error("no instruction set is called '" + text +
                             "': choose amx, avx512, avx2 or portable.");
}

Isa chosen() {
    const std::string text = wanted();
    if (text.empty()) return detect();
    try {
        const Isa isa = parse_isa(text);
        if (present(isa)) return isa;
        Isa best = Isa::portable;
        for (const Isa other : kIsas)
            if (present(other)) best = other;
        throw std::runtime_error("this processor lacks the instructions of '" + text +
                                 "'; the best that it has is '" + name(best) + "'.");
    } catch (const std::runtime_error& error) {
        throw std::runtime_error(std::string("OCKHAM_ISA: ") + error.what());
    }
}

const LimitKernels& limit_kernels(Isa isa) {
#if defined(OCKHAM_AMX)
    if (isa == Isa::amx) return amx::limit_kernels;
#endif
#if defined(__x86_64__)
    if (bits_of(isa) == Isa::avx512) return avx512::limit_kernels;
    if (isa == Isa::avx2) return avx2::limit_kernels;
#endif
    return portable::limit_kernels;
}

}  // namespace ockham
