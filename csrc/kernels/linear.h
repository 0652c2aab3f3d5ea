// Products with packed weights: y[M, N] = x[M, K] . W[N, K] transposed (+ bias).
//
// Exactness. One output of one row is computed by the same floating-point operations in the same
// order whatever M is, wherever the row stands among the others, and however many threads there are:
// tiles cut rows and outputs, never K, and there is one packed layout for every M. The orders are
// written down at each kind below. Integer sums are exact, so their order is free.
//
// Layout. Outputs stand in panels of 16, the lanes of one AVX-512 register; the last panel is padded
// with zeros. `P` below is ceil(N / 16) and every array starts at a multiple of 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa/isa.h"

namespace ockham {

class ThreadPool;

constexpr int64_t panel_outputs = 16;
constexpr int64_t int8_group = 64;

enum class Kind {
    // weight: float [P][K][16]. y = fma(x[k], w[k], y) for k = 0, 1, ... from y = 0 (portable code
    // rounds the product first).
    fp32 = 0,
    // weight: bf16 [P][ceil(K / 2)][16][2]. x is rounded to bf16 (nearest even). For each pair
    // of k: y = fma(x[k + 1], w[k + 1], y), then y = fma(x[k], w[k], y), from y = 0. That is what
    // vdpbf16ps does (checked on Zen 4), which also takes denormals of either type for zero; only
    // with those do other instruction sets differ. (Products of bf16 are exact in fp32.)
    bf16 = 1,
    // Groups of 64 consecutive k, the last one filled up with weights and inputs of zero: G of them.
    // weight: uint8 w + 128, [P][16 * G][16][4]. scale: fp16 [P][G][16]. Groups are rotated: the stored
    // weights are a group's times the orthonormal Hadamard matrix of 64, and a group of x is multiplied
    // by that matrix before it is quantised (hadamard() in prepare_kernels.h). The product stays what
    // it was, but a large value is shared out over its group, so that both sides are rounded on a
    // finer scale (QuaRot, arXiv:2404.00456).
    // Where PackedMatrix::group is 0, a checkpoint's own codes are held: nothing is rotated, and
    // scale: float [P * 16], one for each output.
    // x is quantised by row and group: scale_x = max|x| / 127, a = round(x * (127 / max|x|)), ties to
    // even; all zero where max|x| < 2^-100; a group with NaN or infinity has the scale NaN.
    // For each group: y = fma(float(sum of a * w), scale_x * scale_w, y) from y = 0 (portable code
    // rounds the product first).
    int8 = 2,
    // Groups of `group` (a multiple of 32, at most 256) consecutive k. weight: two 4-bit codes a byte,
    // [P][K / 8][16][4]: byte i holds k = i in its low and k = 4 + i in its high half.
    // scale: fp16 [P][K / group][16]. w = (code - zero) * scale, zero = 8, or uint8
    // [P][K / group][16] where `zero` is given. x is quantised by row and group.
    // For each group: y = fma(float(sum of a * (code - zero)), scale_x * scale_w, y) from y = 0
    // (portable code rounds the product first).
    int4 = 3,
    // What GGUF files hold, in blocks with scales of several kinds: see blocks.h.
    q8_0 = 4,
    q5_0 = 5,
    q4_1 = 6,
    q5_1 = 7,
    q4_k = 8,
    q5_k = 9,
    q6_k = 10,
};

// A packed matrix over memory that somebody else owns (Python: the arrays of a Linear).
struct PackedMatrix {
    Kind kind = Kind::fp32;
    int64_t outputs = 0;  // N
    int64_t inputs = 0;   // K
    int64_t group = 0;    // int4: of inputs; int8: int8_group, or 0: see Kind::int8
    const void* weight = nullptr;
    const void* scale = nullptr;  // fp16; int8 without groups: float
    const void* zero = nullptr;   // int4, may be null

    int64_t panels() const { return (outputs + panel_outputs - 1) / panel_outputs; }
    // Bytes of each array.
    size_t weight_bytes() const;
    size_t scale_bytes() const;
    size_t zero_bytes() const;
};

// In which form a kind reads its input. Matrices with equal forms can share one prepared input.
struct InputForm {
    Kind kind = Kind::fp32;
    int64_t inputs = 0;
    int64_t group = 0;  // inputs that share a scale
    bool rotated = false;  // int8

    bool operator==(const InputForm& other) const {
        return kind == other.kind && inputs == other.inputs && group == other.group &&
               rotated == other.rotated;
    }
    int64_t groups() const { return group ? (inputs + group - 1) / group : 1; }
    // Words of 32 bits that a row has in PreparedInput::offsets.
    int64_t offset_words() const;
    // Bytes from one row's values to the next's: a multiple of 64, the tail zero.
    int64_t row_bytes() const;
    // Bytes that a prepared input of `rows` rows takes in all (values, scales and offsets).
    size_t bytes(int64_t rows) const;
};

InputForm input_form(const PackedMatrix& matrix);

// Rows in the form that a matrix reads. A view of memory of the caller's: form.bytes(rows) of it,
// aligned to 64 bytes.
struct PreparedInput {
    InputForm form;
    int64_t rows = 0;
    uint8_t* values = nullptr;  // rows of row_bytes(): float, bf16 or int8
    float* scales = nullptr;    // all but fp32 and bf16: [rows][groups]
    // int8, int4: [rows][groups], minus the stored weight that means zero (128 or 8; where there are
    // zero points too) times the sum of the group's values. For blocks see block_offset_words().
    int32_t* offsets = nullptr;

    PreparedInput() = default;
    PreparedInput(const InputForm& form, int64_t rows, void* memory);
};

// Fills row `row` of a prepared input from `inputs` floats. Rows are independent: call it from as
// many threads as you like, or at the end of whatever made the row. (For callers with the whole
// input at hand: prepare().)
void prepare_row(Isa isa, const PreparedInput& input, int64_t row, const float* x);

// All rows, shared among the threads. `x_stride` is in floats.
void prepare(ThreadPool& pool, Isa isa, const PreparedInput& input, const float* x,
             int64_t x_stride);

// Computes outputs of panels [panel_begin, panel_end) for rows [row_begin, row_end):
// y[row * y_stride + output] for output < N; `bias` (N floats, may be null) is added last. Writes
// nothing else. One thread; any cutting of panels and rows among calls gives the same bits.
void linear_tile(Isa isa, const PackedMatrix& matrix, const PreparedInput& input,
                 int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end,
                 float* y, int64_t y_stride, const float* bias);

// How linear() cuts `rows` rows of `matrix` into tiles: use it to run the tiles of several matrices,
// or what follows a tile, in one parallel loop. Tile t covers panels
// [t / row_tiles * panels_per_tile, + panels_per_tile) and rows [t % row_tiles * rows_per_tile, ...).
struct Tiling {
    int64_t panels_per_tile = 0;
    int64_t rows_per_tile = 0;
    int64_t panel_tiles = 0;
    int64_t row_tiles = 0;
    int64_t tiles() const { return panel_tiles * row_tiles; }
};
Tiling tiling(const PackedMatrix& matrix, int64_t rows, int threads);

// Computes tile `tile` of a tiling.
void linear_tile(Isa isa, const PackedMatrix& matrix, const PreparedInput& input,
                 const Tiling& tiling, int64_t tile, float* y, int64_t y_stride,
                 const float* bias);

// The whole product, shared among the threads.
void linear(ThreadPool& pool, Isa isa, const PackedMatrix& matrix, const PreparedInput& input,
            float* y, int64_t y_stride, const float* bias);

// Row `output` of the matrix as K floats: what its stored values mean. For embedding tables.
void unpack_row(const PackedMatrix& matrix, int64_t output, float* row);

}  // namespace ockham
