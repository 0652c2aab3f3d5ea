// The kernels of a layer other than its products: a table of functions for each instruction set.
//
// They know rows of floats and blocks of keys, never steps or models. All lengths are in elements;
// nothing needs alignment. A row's result is a function of that row alone.
#pragma once

#include <cstdint>

#include "isa/isa.h"

namespace ockham {

// Attention visits keys by logical index in groups of 16 (one vector), blocks of 64 (one step of the
// online softmax) and parts of 1,024 (each reduced alone, then merged in order).
constexpr int64_t group_keys = 16;
constexpr int64_t block_keys = 64;
constexpr int64_t part_keys = 1024;
constexpr int64_t block_groups = block_keys / group_keys;
constexpr int64_t part_groups = part_keys / group_keys;

// The activations of a feed-forward. Gated by clamped_swiglu, ups count as well, see functions.h.
enum class Activation { silu, gelu_tanh, gelu, relu, clamped_swiglu, relu_squared };
constexpr int activation_count = 6;

inline int64_t padded(int64_t length) { return (length + 15) / 16 * 16; }

// How keys, or values, are stored. The integers are codes. An int8 code is -127 to 127, and a row of
// one head is its codes times one fp32 scale. An int4 code c is 0 to 15 and means zero + scale * c, of
// a row that RowKernels::hadamard has rotated; scale and zero are bf16 and take 4 bytes as well, the
// scale as the high half of a word (a *grid*).
enum class Element { fp32, bf16, int8, int4 };

inline bool coded(Element element) {
    return element == Element::int8 || element == Element::int4;
}

// Heads are no wider where they are stored in codes, so that a score's sum fits 32 bits.
constexpr int64_t most_coded_dim = 512;
// The largest code of a query in 16 bits.
constexpr int32_t most_code = 32767;

// 16 keys and their values for one key-value head, as the planes hold them. fp32: keys [width][16]
// (element by element, a lane for each key), values [16][width]. Others in pairs that one instruction
// multiplies. bf16 and int8: keys [width / 2][16][2 elements], values [8][width][2 keys]. int4, two
// codes to a byte and in fours: keys [width / 8][16][4], the elements 8 i to 8 i + 3 of a key in the low
// halves of four bytes and the next four in the high halves; values [4][width / 2][4 keys], of 32
// elements the first 16 in the low halves (width is a multiple of 32 here). Behind codes stand the 16
// scales, or grids.
struct KeyGroup {
    const void* keys;
    const void* values;
};

// Some queries of one sequence that read one key-value head. Query i sees the logical keys
// [low[i], high[i]); both ascend with i. All arrays but `groups` are indexed from the first query.
struct AttentionTile {
    int64_t queries;
    int64_t head_dim;
    int64_t width;            // padded(head_dim): elements of a key, value, query or output row
    Element keys, values;     // both codes, or one type
    int64_t key_bytes;        // of a group's keys, and of its values
    int64_t value_bytes;
    float softcap;            // 0: none
    const void* q;            // [queries][width] of the planes' type; beside int8 codes of 16 bits,
                              // and beside int4 of 8; times the scale, zero beyond head_dim
    const float* q_scales;    // [queries]: of the codes
    const int32_t* q_sums;    // [queries]: the sum of a query's codes
    const int32_t* low;
    const int32_t* high;
    // Of the part's group g = logical key / 16 - first_group. Only groups that hold a key which a
    // query sees are read.
    const KeyGroup* groups;
    int64_t first_group;
    // The groups of the block that is read after the last one, and its first logical key: of this key-
    // value head or of another, with queries that see the same keys. Null: nothing is known of it.
    const KeyGroup* next;
    int64_t next_start;
    float* peak;      // [queries]: the largest score so far
    float* total;     // [queries]: the sum of e^(score - peak)
    float* out;       // [queries][width]: the same sum over values
};

// `count` tokens of one group, from lane `from` on, that go to another group, from lane `to` on.
struct GroupRun {
    int64_t from, to, count;
    int64_t width;  // of both groups
};

// out[r] = start[r] * factor + the sum over n < count of scales[r][n] * rows[n], in this order, each
// added by an fma; without a start from 0. Rows, results and starts are of `length`, the rows `stride`
// floats apart and the others one after another. `out` may be `start`.
struct RowSums {
    const float* rows;
    int64_t stride, count;
    const float* const* scales;
    int64_t results, length;
    const float* start;
    float factor;
    float* out;
};

struct RowKernels {
    // y = x / sqrt(mean(x^2) + eps) * weight. Squares are summed in 64 lanes, lane i taking the
    // elements i, i + 64, ...; then lanes by 16, then as the tree of lanes.h. y may be x.
    void (*rms_norm)(const float* x, const float* weight, float eps, int64_t length, float* y);
    // y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias, in fp32 throughout; no
    // bias where it is null. Both sums run as those of rms_norm. y may be x.
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps,
                       int64_t length, float* y);
    // x = x + scale * branch
    void (*add_scaled)(float* x, const float* branch, float scale, int64_t length);
    void (*multiply)(float* x, float factor, int64_t length);
    // By Activation: y = act(gate) * up, and y = act(x).
    void (*gated[activation_count])(const float* gate, const float* up, int64_t length, float* y);
    void (*activated[activation_count])(const float* x, int64_t length, float* y);
    // Rotates one head in place: pairs (i, i + half) by the angle with these cosines and sines.
    void (*rotate)(float* head, const float* cosines, const float* sines, int64_t half);
    // x = cap * tanh(x / cap)
    void (*softcap)(float* x, float cap, int64_t length);
    // x = e^(x - max x) / sum. Summed in 16 lanes.
    void (*softmax)(float* x, int64_t length);
    void (*logistic)(float* x, int64_t length);
    // sums[0] = sum of e^(x - peak), sums[1] = sum of (x - peak) e^(x - peak), in 64 lanes. No value
    // is above the peak.
    void (*exponential_sums)(const float* x, float peak, int64_t length, float* sums);
    // The index of the largest value, the lowest on a tie; `length` at least 1. A NaN wins over all.
    int64_t (*argmax)(const float* x, int64_t length);
    // y = x rounded to bf16, nearest even.
    void (*to_bf16)(const float* x, int64_t length, uint16_t* y);
    // Rows in codes, x = scale * code, to the nearest; the scale is returned. It is such that the
    // largest magnitude has the largest code; 0 for a row of zeros or of less than 1e-30, and NaN for
    // a row that is not finite. to_int16: -most_code to most_code.
    float (*to_int16)(const float* x, int64_t length, int16_t* codes);
    float (*to_int8)(const float* x, int64_t length, int8_t* codes);
    // A row in codes of 4 bits; its grid is returned. 15 steps span 0.95 times what the row does, its
    // middle in the middle; what stands outside has the code at that end.
    uint32_t (*to_int4)(const float* x, int64_t length, int8_t* codes);
    // Multiplies a row by an orthonormal Hadamard matrix, in blocks of the largest power of two that
    // divides `length`; it is its own inverse. Stages from the lowest bit to the highest: a pair (a,
    // b) whose places differ in that bit becomes (a + b, a - b).
    void (*hadamard)(float* x, int64_t length);
    // Philox4x32-10 of the counters (first_block + i, counter1, counter2, counter3) for i < 16:
    // words[16][4]. Integers, so the same everywhere.
    void (*philox)(const uint32_t key[2], uint32_t first_block, uint32_t counter1,
                   uint32_t counter2, uint32_t counter3, uint32_t* words);
    // Copies the keys of some tokens between two groups, as KeyGroup says, their first 2 * half
    // elements rotated as by `rotate` and rounded once; and their values as they are.
    void (*turn_fp32)(const void* source, void* target, GroupRun run, const float* cosines,
                      const float* sines, int64_t half);
    void (*turn_bf16)(const void* source, void* target, GroupRun run, const float* cosines,
                      const float* sines, int64_t half);
    void (*copy_values_fp32)(const void* source, void* target, GroupRun run);
    void (*copy_values_bf16)(const void* source, void* target, GroupRun run);
    void (*sum_rows)(const RowSums& of);
    // out[n] = x times the row n of `count` that are `stride` floats apart, in 16 lanes, lane i taking the
    // elements i, i + 16, ...; then as the tree of lanes.h.
    void (*dots)(const float* x, const float* rows, int64_t stride, int64_t count, int64_t length,
                 float* out);
    // For tests: the functions of functions.h by name.
    void (*exponential)(const float* x, int64_t length, float* y);
    void (*hyperbolic_tangent)(const float* x, int64_t length, float* y);
};

struct AttentionKernels {
    // Adds the keys of the blocks [first_block, last_block) (64 logical keys each, all of one part)
    // to the queries' peak, total and out.
    void (*attend)(const AttentionTile& tile, int64_t first_block, int64_t last_block);
    // Adds the sums of a later part to those of all parts before it. [queries], out [queries][width].
    void (*merge)(int64_t queries, int64_t width, const float* part_peak, const float* part_total,
                  const float* part_out, float* peak, float* total, float* out);
    // out / total for one query: head_dim elements of a.
    void (*finish)(const float* out, float total, int64_t head_dim, float* a);
    // Adds e^(score - peak) / total of one block's keys to probabilities[0..63]; only keys that the
    // query sees are written. For tiles of one query whose peak and total are final.
    void (*probabilities)(const AttentionTile& tile, int64_t block, float* probabilities);
};

const RowKernels& row_kernels(Isa isa);
const AttentionKernels& attention_kernels(Isa isa);

namespace portable {
extern const RowKernels row_kernels;
extern const AttentionKernels attention_kernels;
}  // namespace portable
#if defined(__x86_64__)
namespace avx2 {
extern const RowKernels row_kernels;
extern const AttentionKernels attention_kernels;
}  // namespace avx2
namespace avx512 {
extern const RowKernels row_kernels;
extern const AttentionKernels attention_kernels;
}  // namespace avx512
#endif

}  // namespace ockham
