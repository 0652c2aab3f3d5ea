// What each instruction set offers: a table of functions, filled by csrc/isa/*.cpp.
#pragma once

#include <cstdint>

#include "isa.h"
#include "linear.h"

namespace ockham {

struct LinearKernels {
    void (*prepare_row)(const PreparedInput& input, int64_t row, const float* x);
    void (*tile)(const PackedMatrix& matrix, const PreparedInput& input, int64_t row_begin,
                 int64_t row_end, int64_t panel_begin, int64_t panel_end, float* y,
                 int64_t y_stride, const float* bias);
};

// Probes of the machine's arithmetic: each runs `rounds` of independent operations on registers and
// returns how many operations (multiplications and additions) that were.
struct LimitKernels {
    double (*fp32)(int64_t rounds, float* sink);
    double (*bf16)(int64_t rounds, float* sink);
    double (*int8)(int64_t rounds, float* sink);
    // Reads `bytes` (a multiple of 512) once and returns their sum, so that nothing is skipped.
    uint64_t (*read)(const void* from, int64_t bytes);
};

const LinearKernels& linear_kernels(Isa isa);
const LimitKernels& limit_kernels(Isa isa);

namespace portable {
extern const LinearKernels linear_kernels;
extern const LimitKernels limit_kernels;
}  // namespace portable
#if defined(__x86_64__)
namespace avx2 {
extern const LinearKernels linear_kernels;
extern const LimitKernels limit_kernels;
}  // namespace avx2
namespace avx512 {
extern const LinearKernels linear_kernels;
extern const LimitKernels limit_kernels;
}  // namespace avx512
#endif

}  // namespace ockham
