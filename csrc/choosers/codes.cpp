// Keys in 2 bits: an estimate of every score (the scan of FFD, "Faster than Flash", ICML 2026).
//
// Keys and queries are turned by a Hadamard matrix, as large a power of two as divides the width, so that
// no element stands out; a product is the same after it. A key's turned elements become codes 0 to 3 with
// the value (code - 1.5) * step, of a step for each key. summary: [width / 16][16 keys][4 bytes] of codes,
// then a float step for each key. Byte b of a key has the codes of the elements 4 s + b in its bits 2 s.
// query: [width] int8 in the order of the elements, then its float scale and 1.5 times the sum of its
// values, so that a score is scale * step * (sum of value * code - that). The sum is of integers: all
// instruction sets give the same.
#include "choosers/chooser.h"

#ifdef OCKHAM_ISA_NAMESPACE

#include "kernels/lanes.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

namespace {

// Adds to the sums of 16 keys the products of 16 elements: `codes` [16][4 bytes], `values` int8 [16].
#if defined(__AVX512F__)
struct Sums {
    __m512i v;
};
inline __attribute__((always_inline)) Sums nothing() { return {_mm512_setzero_si512()}; }
inline __attribute__((always_inline)) int32_t four(const uint8_t* values) {
    int32_t found;
    std::memcpy(&found, values, sizeof found);
    return found;
}
inline __attribute__((always_inline)) Sums add(Sums sums, const uint8_t* codes,
                                               const uint8_t* values) {
    const __m512i packed = _mm512_loadu_si512(codes), mask = _mm512_set1_epi8(3);
    const auto step = [&](__m512i shifted, int s) {
        sums.v = _mm512_dpbusd_epi32(sums.v, _mm512_and_si512(shifted, mask),
                                     _mm512_set1_epi32(four(values + 4 * s)));
    };
    step(packed, 0);
    step(_mm512_srli_epi16(packed, 2), 1);
    step(_mm512_srli_epi16(packed, 4), 2);
    step(_mm512_srli_epi16(packed, 6), 3);
    return sums;
}
inline __attribute__((always_inline)) Lanes floats(Sums sums) {
    return {_mm512_cvtepi32_ps(sums.v)};
}
#elif defined(__AVX2__)
struct Sums {
    __m256i a, b;
};
inline __attribute__((always_inline)) Sums nothing() {
    return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
inline __attribute__((always_inline)) __m256i products(__m256i shifted, const uint8_t* values) {
    int32_t found;
    std::memcpy(&found, values, sizeof found);
    const __m256i codes = _mm256_and_si256(shifted, _mm256_set1_epi8(3));
    return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, _mm256_set1_epi32(found)),
                             _mm256_set1_epi16(1));
}
inline __attribute__((always_inline)) __m256i add_half(__m256i sum, const uint8_t* codes,
                                                       const uint8_t* values) {
    const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    sum = _mm256_add_epi32(sum, products(packed, values));
    sum = _mm256_add_epi32(sum, products(_mm256_srli_epi16(packed, 2), values + 4));
    sum = _mm256_add_epi32(sum, products(_mm256_srli_epi16(packed, 4), values + 8));
    return _mm256_add_epi32(sum, products(_mm256_srli_epi16(packed, 6), values + 12));
}
inline __attribute__((always_inline)) Sums add(Sums sums, const uint8_t* codes,
                                               const uint8_t* values) {
    return {add_half(sums.a, codes, values), add_half(sums.b, codes + 32, values)};
}
inline __attribute__((always_inline)) Lanes floats(Sums sums) {
    return {_mm256_cvtepi32_ps(sums.a), _mm256_cvtepi32_ps(sums.b)};
}
#else
struct Sums {
    int32_t v[lane_count];
};
inline Sums nothing() { return {}; }
inline Sums add(Sums sums, const uint8_t* codes, const uint8_t* values) {
    for (int key = 0; key < lane_count; ++key)
        for (int s = 0; s < 4; ++s)
            for (int b = 0; b < 4; ++b)
                sums.v[key] += (codes[4 * key + b] >> (2 * s) & 3) *
                               static_cast<int8_t>(values[4 * s + b]);
    return sums;
}
inline Lanes floats(Sums sums) {
    float values[lane_count];
    for (int key = 0; key < lane_count; ++key) values[key] = static_cast<float>(sums.v[key]);
    return load(values);
}
#endif

}  // namespace

void score_codes(const uint8_t* queries, int64_t query_count, int64_t width,
                 const KeyBook*, const uint8_t* const* summaries, int64_t count, float* scores, int64_t stride) {
    constexpr int64_t ahead = 8;
    const int64_t bytes = 4 * width + 64, query_bytes = (width + 8 + 63) / 64 * 64;
    for (int64_t g = 0; g < count; ++g) {
        if (g + ahead < count)
            for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(summaries[g + ahead] + i);
        const Lanes steps = load(reinterpret_cast<const float*>(summaries[g] + 4 * width));
        for (int64_t i = 0; i < query_count; ++i) {
            const uint8_t* query = queries + i * query_bytes;
            Sums sums = nothing();
            for (int64_t e = 0; e < width; e += 16)
                sums = add(sums, summaries[g] + 4 * e, query + e);
            float numbers[2];
            std::memcpy(numbers, query + width, sizeof numbers);
            const Lanes found = (floats(sums) - broadcast(numbers[1])) * steps;
            scores[i * stride + g] = largest(found) * numbers[0];
        }
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "isa/each.h"

namespace ockham {

OCKHAM_DECLARE(ScoreSummaries score_codes);

namespace {

// The step with which evenly spaced values of 2 bits are nearest to those of a normal distribution of
// deviation 1 (Max, Quantizing for minimum distortion, 1960).
constexpr float normal_step = 0.9957f;

int64_t summary_bytes(int64_t width) { return 4 * width + 64; }
int64_t query_bytes(int64_t width) { return (width + 8 + 63) / 64 * 64; }

// Turns `width` values by Hadamard matrices, in place: pairs become their sum and difference, stage after
// stage. Lengths grow by the root of the matrices' size, which turned() takes back.
void turn(float* values, int64_t width, int64_t size) {
    for (int64_t begin = 0; begin < width; begin += size)
        for (int64_t half = 1; half < size; half *= 2)
            for (int64_t i = begin; i < begin + size; i += 2 * half)
                for (int64_t j = i; j < i + half; ++j) {
                    const float a = values[j], b = values[j + half];
                    values[j] = a + b;
                    values[j + half] = a - b;
                }
}

void turned(const float* from, int64_t width, float* to) {
    const int64_t size = width & -width;  // the largest power of two that divides it
    std::copy(from, from + width, to);
    turn(to, width, size);
    const float by = 1.0f / std::sqrt(static_cast<float>(size));
    for (int64_t e = 0; e < width; ++e) to[e] *= by;
}

void summarise(const float* keys, int64_t width, const KeyBook*, uint8_t* summary) {
    std::fill(summary, summary + 4 * width, static_cast<uint8_t>(0));
    std::vector<float> values(static_cast<size_t>(width));
    float steps[group_keys];
    for (int64_t key = 0; key < group_keys; ++key) {
        turned(keys + key * width, width, values.data());
        float squares = 0.0f;
        for (const float value : values) squares += value * value;
        const float step = normal_step * std::sqrt(squares / static_cast<float>(width));
        steps[key] = step;
        if (!(step > 0.0f && std::isfinite(step))) continue;
        for (int64_t e = 0; e < width; ++e) {
            const float code = std::clamp(std::floor(values[e] / step) + 2.0f, 0.0f, 3.0f);
            uint8_t& byte = summary[(e / 16 * group_keys + key) * 4 + e % 4];
            byte = static_cast<uint8_t>(byte | static_cast<int>(code) << (2 * (e % 16 / 4)));
        }
    }
    std::memcpy(summary + 4 * width, steps, sizeof steps);
}

void prepare(const float* q, int64_t width, uint8_t* query) {
    std::vector<float> values(static_cast<size_t>(width));
    turned(q, width, values.data());
    float most = 0.0f;
    for (const float value : values) most = std::max(most, std::fabs(value));
    const float scale = most / 127.0f;
    const bool good = scale > 0.0f && std::isfinite(scale);
    int32_t sum = 0;
    for (int64_t e = 0; e < width; ++e) {
        const float code = good ? std::nearbyint(values[e] / scale) : 0.0f;
        const auto small = static_cast<int8_t>(std::clamp(code, -127.0f, 127.0f));
        query[e] = static_cast<uint8_t>(small);
        sum += small;
    }
    const float numbers[2] = {scale, 1.5f * static_cast<float>(sum)};
    std::memcpy(query + width, numbers, sizeof numbers);
}

const Chooser chooser{"codes",   summary_bytes, query_bytes,
                      summarise, prepare,       OCKHAM_EACH_ISA(score_codes)};
const AddedChooser added{chooser};

}  // namespace

}  // namespace ockham

#endif
