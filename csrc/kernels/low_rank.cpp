#include "kernels/low_rank.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ockham {

namespace {

int64_t sixteens(int64_t count) { return (count + 15) / 16; }

size_t rounded(int64_t bytes) { return static_cast<size_t>(bytes + 63) / 64 * 64; }

uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Writes one element at place `at` of a packed array of zeros; int8 times `inverse`, of its scale.
void put(void* to, FactorType element, int64_t at, float value, float inverse) {
    switch (element) {
        case FactorType::fp32:
            static_cast<float*>(to)[at] = value;
            return;
        case FactorType::bf16:
            static_cast<uint16_t*>(to)[at] = to_bf16(value);
            return;
        case FactorType::int8:
            static_cast<int8_t*>(to)[at] = static_cast<int8_t>(std::nearbyint(value * inverse));
    }
}

// 127 over the largest magnitude of `count` values; 0 where all are 0.
float inverse_scale(const float* values, int64_t count, int64_t stride) {
    float most = 0.0f;
    for (int64_t i = 0; i < count; ++i) most = std::max(most, std::fabs(values[i * stride]));
    return most < 0x1p-100f ? 0.0f : 127.0f / most;
}

}  // namespace

size_t LowRank::a_bytes() const { return rounded(sixteens(inputs) * 16 * rank * element_bytes()); }
size_t LowRank::b_bytes() const { return rounded(sixteens(outputs) * 16 * rank * element_bytes()); }
size_t LowRank::factor_bytes() const { return rounded(rank * sizeof(float)); }

LowRank pack_low_rank(LowRank matrix, const float* a, const float* b, uint8_t* to) {
    const int64_t rank = matrix.rank, inputs = matrix.inputs, groups = sixteens(inputs);
    std::memset(to, 0, matrix.bytes());
    uint8_t* to_b = to + matrix.a_bytes();
    float* factors = reinterpret_cast<float*>(to_b + matrix.b_bytes());
    for (int64_t r = 0; r < rank; ++r) {
        float of_a = 1.0f, of_b = 1.0f;
        factors[r] = matrix.scale;
        if (matrix.element == FactorType::int8) {
            of_a = inverse_scale(a + r * inputs, inputs, 1);
            of_b = inverse_scale(b + r, matrix.outputs, rank);
            factors[r] = of_a * of_b == 0.0f ? 0.0f : matrix.scale / of_a / of_b;
        }
        const int64_t first = r / rank_block * rank_block;
        const int64_t ranks = std::min(rank_block, rank - first);
        for (int64_t k = 0; k < inputs; ++k)
            put(to, matrix.element,
                first * groups * 16 + (k / 16 * ranks + r - first) * 16 + k % 16,
                a[r * inputs + k], of_a);
        for (int64_t output = 0; output < matrix.outputs; ++output)
            put(to_b, matrix.element, (output / 16 * rank + r) * 16 + output % 16,
                b[output * rank + r], of_b);
    }
    matrix.a = to;
    matrix.b = to_b;
    matrix.factors = factors;
    return matrix;
}

LowRank pack_low_rank_codes(LowRank matrix, const int8_t* a, const int8_t* b, const float* factors,
                            uint8_t* to) {
    const int64_t rank = matrix.rank, inputs = matrix.inputs, groups = sixteens(inputs);
    std::memset(to, 0, matrix.bytes());
    uint8_t* to_b = to + matrix.a_bytes();
    float* to_factors = reinterpret_cast<float*>(to_b + matrix.b_bytes());
    for (int64_t r = 0; r < rank; ++r) {
        const int64_t first = r / rank_block * rank_block;
        const int64_t ranks = std::min(rank_block, rank - first);
        uint8_t* block = to + first * groups * 16 + (r - first) * 16;
        for (int64_t k = 0; k < inputs; k += 16)
            std::memcpy(block + k * ranks, a + r * inputs + k, std::min<int64_t>(16, inputs - k));
    }
    for (int64_t output = 0; output < matrix.outputs; ++output)
        for (int64_t r = 0; r < rank; ++r)
            to_b[(output / 16 * rank + r) * 16 + output % 16] =
                static_cast<uint8_t>(b[output * rank + r]);
    std::memcpy(to_factors, factors, rank * sizeof(float));
    matrix.element = FactorType::int8;
    matrix.a = to;
    matrix.b = to_b;
    matrix.factors = to_factors;
    return matrix;
}

const LowRankKernels& low_rank_kernels(Isa isa) {
#if defined(__x86_64__)
    if (bits_of(isa) == Isa::avx512) return avx512::low_rank_kernels;
    if (isa == Isa::avx2) return avx2::low_rank_kernels;
#endif
    (void)isa;
    return portable::low_rank_kernels;
}

}  // namespace ockham
