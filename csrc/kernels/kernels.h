// What each instruction set offers beside the kinds of csrc/kinds/: a table of functions, filled by
// csrc/isa/*.cpp.
#pragma once

#include <cstdint>

#include "isa/isa.h"

namespace ockham {

// Probes of the machine's arithmetic: each runs `rounds` of independent operations on registers and
// returns how many operations (multiplications and additions) that were. `sink`: 64 floats.
struct LimitKernels {
    double (*fp32)(int64_t rounds, float* sink);
    double (*bf16)(int64_t rounds, float* sink);
    double (*int8)(int64_t rounds, float* sink);
    // Reads `bytes` (a multiple of 512) once and returns their largest word, so that none is skipped.
    int32_t (*read)(const void* from, int64_t bytes);
};

const LimitKernels& limit_kernels(Isa isa);

namespace portable {
extern const LimitKernels limit_kernels;
}  // namespace portable
#if defined(__x86_64__)
namespace avx2 {
extern const LimitKernels limit_kernels;
}  // namespace avx2
namespace avx512 {
extern const LimitKernels limit_kernels;
}  // namespace avx512
#endif
#if defined(OCKHAM_AMX)
namespace amx {
extern const LimitKernels limit_kernels;
}  // namespace amx
#endif

}  // namespace ockham
