// Sums of low rank: y += scale * B (A x) for one row, with A (rank, inputs) and B (outputs, rank).
//
// Exactness. A row's sum is a function of that row alone. Element r of A x is summed in 16 lanes, lane
// i taking the inputs i, i + 16, ... in order by fma, then as the tree of lanes.h; it is multiplied by
// the rank's own factor. An output is summed over r = 0, 1, ... by fma from 0, and then added to y. (Portable code
// rounds the product of an fma first.)
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa/isa.h"

namespace ockham {

// Elements of A that one pass over x multiplies, of one row.
constexpr int64_t rank_block = 8;
// Rows that a kernel takes at once, at most.
constexpr int64_t low_rank_rows = 4;

// What the elements of both matrices are. int8 has one scale for each rank, of A's row and of B's
// column, the largest magnitude / 127; both are in the rank's factor.
enum class FactorType { fp32, bf16, int8 };

// Both matrices over memory that somebody else owns, aligned to 64 bytes.
//
// a: for each block of at most `rank_block` ranks [ceil(inputs / 16)][ranks of the block][16], zero
// beyond the inputs. b: [ceil(outputs / 16)][rank][16], zero beyond the outputs. factors: [rank], what
// element r of A x is multiplied by: `scale`, and for int8 the scales.
struct LowRank {
    int64_t inputs = 0;
    int64_t rank = 0;
    int64_t outputs = 0;
    FactorType element = FactorType::bf16;
    float scale = 1.0f;
    const void* a = nullptr;
    const void* b = nullptr;
    const float* factors = nullptr;

    int64_t element_bytes() const {
        return element == FactorType::int8 ? 1 : element == FactorType::bf16 ? 2 : 4;
    }
    // Multiples of 64.
    size_t a_bytes() const;
    size_t b_bytes() const;
    size_t factor_bytes() const;
    size_t bytes() const { return a_bytes() + b_bytes() + factor_bytes(); }
};

// A sum over the outputs [first, first + sum.outputs) of a matrix.
struct LowRankPart {
    int64_t first;
    LowRank sum;
};

struct LowRankKernels {
    // t[row][0 .. rank) = factors * A x[row], for at most low_rank_rows rows.
    void (*shrink)(const LowRank& matrix, const float* const* x, int64_t rows, float* const* t);
    // y[row][0 .. to - from) += the outputs [from, to) of B t[row], for at most low_rank_rows rows.
    void (*expand)(const LowRank& matrix, const float* const* t, int64_t rows, int64_t from,
                   int64_t to, float* const* y);
};

const LowRankKernels& low_rank_kernels(Isa isa);

// Packs A and B, given row after row, into bytes() at `to`, rounded to nearest even; the matrix with its
// pointers.
LowRank pack_low_rank(LowRank matrix, const float* a, const float* b, uint8_t* to);

// The same of codes that are int8 already: a (rank, inputs), b (outputs, rank), factors (rank).
LowRank pack_low_rank_codes(LowRank matrix, const int8_t* a, const int8_t* b, const float* factors,
                            uint8_t* to);

namespace portable {
extern const LowRankKernels low_rank_kernels;
}  // namespace portable
#if defined(__x86_64__)
namespace avx2 {
extern const LowRankKernels low_rank_kernels;
}  // namespace avx2
namespace avx512 {
extern const LowRankKernels low_rank_kernels;
}  // namespace avx512
#endif

}  // namespace ockham
