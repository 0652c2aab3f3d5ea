// Which instruction set the kernels use: chosen once, at run time.
//
// How to add a kernel. Write it once, as templates over the 16-lane types of `simd_*.h`, in a header
// `kernels/NAME_kernels.h` in `namespace ockham::OCKHAM_ISA_NAMESPACE`, and include that header from
// `csrc/isa/portable.cpp`, `csrc/isa/avx2.cpp` and `csrc/isa/avx512.cpp`: the build compiles each of
// those files with the flags of its instruction set, and nothing else with any. Each of them fills a
// table of function pointers (`Kernels`, in kernels/kernels.h); `kernels(isa)` gives the table. The kernels
// of a kind of matrices stand in `kinds/NAME_kernels.h`, of which the build makes such files by itself,
// and are found by their names (each.h). Code
// outside what these files include never uses an intrinsic. Only templates and `static inline`
// functions may stand in what they include (also of the standard library as little as possible): an
// ordinary inline function compiled with AVX-512 flags could be the copy that the linker keeps for
// everybody.
#pragma once

#include <string>

namespace ockham {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2, amx = 3 };

// How many of them were compiled: where an array has a function of each, Isa is its index.
#if defined(__x86_64__)
constexpr int isa_count = 4;
#else
constexpr int isa_count = 1;
#endif

// Whether kernels of `isa` run here: this processor and its operating system have the instructions,
// and OCKHAM_ISA, if set, names no lesser set. avx512 stands for F, BW, DQ, VL, VNNI and BF16; avx2
// for AVX2, FMA and F16C; amx for avx512 with AMX-TILE, AMX-INT8 and AMX-BF16, for which the first
// question asks the operating system once.
bool supported(Isa isa);

// Throws std::invalid_argument with a sentence if `isa` is not supported: every function that is
// called from outside with an instruction set begins with it.
void require(Isa isa);

// The best instruction set that is supported.
Isa detect();

// What the environment's OCKHAM_ISA names, else detect(). Throws std::runtime_error with a sentence
// where the variable names an unknown one, or one that this processor lacks.
Isa chosen();

const char* name(Isa isa);

// The instruction set whose bits `isa` gives. amx adds up the same integers faster than avx512 does, so
// that what was computed with the one may be resumed with the other. Products of floats are another
// matter: a kind of matrices says whose bits its own have (LinearKind::product_bits).
Isa bits_of(Isa isa);

// The opposite of name(), whether supported or not. Throws std::runtime_error with a sentence for a
// name that is none.
Isa parse_isa(const std::string& text);

}  // namespace ockham
