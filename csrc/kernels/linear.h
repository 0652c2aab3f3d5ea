// Products with packed weights: y[M, N] = x[M, K] . W[N, K] transposed (+ bias).
//
// Exactness. One output of one row is computed by the same floating-point operations in the same
// order whatever M is, wherever the row stands among the others, and however many threads there are:
// tiles cut rows and outputs, never K, and there is one packed layout for every M. The orders are
// written down at each kind (csrc/kinds/). Integer sums are exact, so their order is free.
//
// Layout. Outputs stand in panels of 16, the lanes of one AVX-512 register; the last panel is padded
// with zeros. `P` below is ceil(N / 16) and every array starts at a multiple of 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "isa/isa.h"

namespace ockham {

class ThreadPool;

constexpr int64_t panel_outputs = 16;

struct LinearKind;  // kinds/kind.h
struct LowRank;     // kernels/low_rank.h

// A packed matrix over memory that somebody else owns (Python: the arrays of a Linear).
struct PackedMatrix {
    const LinearKind* kind = nullptr;
    int64_t outputs = 0;  // N
    int64_t inputs = 0;   // K
    int64_t group = 0;    // inputs that share a scale, where the kind lets that be chosen
    // Bytes of each array; 0 for one that there is not.
    size_t weight_bytes = 0, scale_bytes = 0, zero_bytes = 0;
    const void* weight = nullptr;
    const void* scale = nullptr;
    const void* zero = nullptr;
    // What an operation adds to the products of all rows; null for nothing. linear() does not.
    const LowRank* correction = nullptr;

    int64_t panels() const { return (outputs + panel_outputs - 1) / panel_outputs; }
    bool zeros() const { return zero_bytes != 0; }
};

// A matrix of a kind without its arrays. Throws std::invalid_argument with a sentence for a kind that
// there is not, and for a shape that the kind cannot have.
PackedMatrix matrix_of(const std::string& kind, int64_t outputs, int64_t inputs, int64_t group = 0,
                       bool zeros = false);

struct PreparedInput;
using PrepareFunction = void(const PreparedInput& input, int64_t row, const float* x);

// How a row of inputs is stored for products: plain, or as int8 with scales.
struct InputKind {
    int64_t value_bytes;
    int64_t offset_words;  // words of 32 bits in PreparedInput::offsets for each group; 0: no scales
    PrepareFunction* prepare[isa_count];
};

// In which form a kind of matrix reads its input. Matrices with equal forms can share one prepared
// input.
struct InputForm {
    const InputKind* kind = nullptr;
    int64_t inputs = 0;
    int64_t group = 0;     // inputs that share a scale
    int32_t zero = 0;      // the stored weight that means zero
    bool rotated = false;  // each group by hadamard() of hadamard_kernels.h

    bool operator==(const InputForm& other) const {
        return kind == other.kind && inputs == other.inputs && group == other.group &&
               zero == other.zero && rotated == other.rotated;
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
    uint8_t* values = nullptr;   // rows of row_bytes()
    float* scales = nullptr;     // [rows][groups], where values are int8
    int32_t* offsets = nullptr;  // [rows][offset_words()]: see inputs.h
    // All inputs from this one on are zero: products may leave them out, which changes no bit but the
    // sign of a zero.
    int64_t used = 0;

    PreparedInput() = default;
    PreparedInput(const InputForm& form, int64_t rows, void* memory);
};

// Outputs of panels [panel_begin, panel_end) for rows [row_begin, row_end): see linear_tile().
struct Area {
    int64_t row_begin, row_end, panel_begin, panel_end;
};
using TileFunction = void(const PackedMatrix& matrix, const PreparedInput& input, const Area& area,
                          float* y, int64_t y_stride, const float* bias);

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

// The same of so many of its panels, counted from the first of them.
Tiling tiling(const PackedMatrix& matrix, int64_t panels, int64_t rows, int threads);

// Of the outputs of a stack of matrices the first `count` in every `of`; all where `count` is 0.
struct LeadingOutputs {
    int64_t of = 0, count = 0;
};

// Panels [begin, end) of a matrix.
struct Panels {
    int64_t begin, end;
};

// The panels of a matrix that hold any such output, ascending, of a stack in which its outputs begin at
// `first`.
std::vector<Panels> leading_panels(const PackedMatrix& matrix, int64_t first, LeadingOutputs leading);

// Computes tile `tile` of a tiling.
void linear_tile(Isa isa, const PackedMatrix& matrix, const PreparedInput& input,
                 const Tiling& tiling, int64_t tile, float* y, int64_t y_stride,
                 const float* bias);

// The whole product, shared among the threads.
void linear(ThreadPool& pool, Isa isa, const PackedMatrix& matrix, const PreparedInput& input,
            float* y, int64_t y_stride, const float* bias);

// The same of some panels only: what the others give is not written.
void linear(ThreadPool& pool, Isa isa, const PackedMatrix& matrix, const PreparedInput& input,
            const std::vector<Panels>& panels, float* y, int64_t y_stride, const float* bias);

// Row `output` of the matrix as K floats: what its stored values mean. For embedding tables.
void unpack_row(const PackedMatrix& matrix, int64_t output, float* row);

}  // namespace ockham
