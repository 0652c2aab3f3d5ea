// What each instruction set offers: a table of functions, filled by csrc/isa/*.cpp.
#pragma once

#include <cstdint>

#include "isa/isa.h"
#include "kernels/linear.h"

namespace ockham {

struct LinearKernels {
    void (*prepare_row)(const PreparedInput& input, int64_t row, const float* x);
    void (*tile)(const PackedMatrix& matrix, const PreparedInput& input, int64_t row_begin,
                 int64_t row_end, int64_t panel_begin, int64_t panel_end, float* y,
                 int64_t y_stride, const float* bias);
};

// Quantising the rows of one panel: 16 rows of `inputs` floats. See Kind in linear.h for what is
// stored and ockham/weights for how scales are chosen; the bits are the same for all instruction sets.
struct PackKernels {
    // codes: 16 rows of whole groups of bytes, w + 128; scale: [groups][16].
    void (*int8)(const float* rows, int64_t inputs, uint8_t* codes, uint16_t* scale);
    // codes: 16 rows of inputs / 2 bytes, 8 codes in each 4 as in linear.h; scale: [inputs / group][16].
    void (*int4)(const float* rows, int64_t inputs, int64_t group, uint8_t* codes, uint16_t* scale);
};

// Probes of the machine's arithmetic: each runs `rounds` of independent operations on registers and
// returns how many operations (multiplications and additions) that were. `sink`: 64 floats.
struct LimitKernels {
    double (*fp32)(int64_t rounds, float* sink);
    double (*bf16)(int64_t rounds, float* sink);
    double (*int8)(int64_t rounds, float* sink);
    // Reads `bytes` (a multiple of 512) once and returns their largest word, so that none is skipped.
    int32_t (*read)(const void* from, int64_t bytes);
};

const LinearKernels& linear_kernels(Isa isa);
const PackKernels& pack_kernels(Isa isa);
const LimitKernels& limit_kernels(Isa isa);

namespace portable {
extern const LinearKernels linear_kernels;
extern const PackKernels pack_kernels;
extern const LimitKernels limit_kernels;
}  // namespace portable
#if defined(__x86_64__)
namespace avx2 {
extern const LinearKernels linear_kernels;
extern const PackKernels pack_kernels;
extern const LimitKernels limit_kernels;
}  // namespace avx2
namespace avx512 {
extern const LinearKernels linear_kernels;
extern const PackKernels pack_kernels;
extern const LimitKernels limit_kernels;
}  // namespace avx512
#endif

}  // namespace ockham
