// Sums of low rank, once for all instruction sets: see low_rank.h. Included by csrc/isa/layer_*.cpp.
//
// Both kernels read their matrix as one stream. They are templates over the rows and the ranks or
// panels whose sums stay in registers: cutting either changes no bit.
#pragma once

#include <cstring>

#include "kernels/lanes.h"
#include "kernels/low_rank.h"

namespace ockham {
namespace OCKHAM_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int64_t shrink_rows = 2, expand_rows = 4;   // several rows at once
constexpr int64_t expand_panels = 4, alone_panels = 8;
#else
constexpr int64_t shrink_rows = 1, expand_rows = 1;
constexpr int64_t expand_panels = 4, alone_panels = 4;
#endif

template <int64_t N>
struct Count {
    static constexpr int value = N;
};

// 16 elements as fp32.
static inline Lanes widened(const uint16_t* from) {
#if defined(__AVX512F__)
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
#elif defined(__AVX2__)
    const auto eight = [](const uint16_t* p) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    };
    return {eight(from), eight(from + 8)};
#else
    float values[16];
    for (int i = 0; i < 16; ++i) {
        const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
        std::memcpy(values + i, &bits, 4);
    }
    return load(values);
#endif
}
static inline Lanes widened(const float* from) { return load(from); }
static inline Lanes widened(const int8_t* from) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
#elif defined(__AVX2__)
    const auto eight = [](const int8_t* p) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    };
    return {eight(from), eight(from + 8)};
#else
    float values[16];
    for (int i = 0; i < 16; ++i) values[i] = from[i];
    return load(values);
#endif
}

// Calls f with an element of the type that a matrix has.
template <class F>
static inline void with_element(const LowRank& matrix, F f) {
    switch (matrix.element) {
        case FactorType::fp32: return f(float());
        case FactorType::bf16: return f(uint16_t());
        case FactorType::int8: return f(int8_t());
    }
}

// How far ahead of what is read memory is asked for.
constexpr int64_t ahead_bytes = 4096;

// t = factors * A x for ROWS rows and one block of RANKS ranks, the block's first at `a`.
template <int ROWS, int RANKS, class Element>
static void shrink_block(const LowRank& matrix, const Element* a, const float* const* x,
                         float* const* t, int64_t first) {
    Lanes sums[ROWS][RANKS];
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 32
        for (int j = 0; j < RANKS; ++j) sums[r][j] = zero();
    const int64_t whole = matrix.inputs / 16 * 16;
    const auto accumulate = [&](const Lanes(&values)[ROWS]) {
        constexpr int64_t bytes = 16 * RANKS * sizeof(Element);
        for (int64_t at = 0; at < bytes; at += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(a) + ahead_bytes + at);
#pragma GCC unroll 32
        for (int j = 0; j < RANKS; ++j) {
            const Lanes weights = widened(a + 16 * j);
#pragma GCC unroll 32
            for (int r = 0; r < ROWS; ++r) sums[r][j] = fma(values[r], weights, sums[r][j]);
        }
        a += 16 * RANKS;
    };
    Lanes values[ROWS];
    for (int64_t k = 0; k < whole; k += 16) {
#pragma GCC unroll 32
        for (int r = 0; r < ROWS; ++r) values[r] = load(x[r] + k);
        accumulate(values);
    }
    if (whole < matrix.inputs) {
#pragma GCC unroll 32
        for (int r = 0; r < ROWS; ++r) values[r] = load_some(x[r] + whole, matrix.inputs - whole);
        accumulate(values);
    }
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 32
        for (int j = 0; j < RANKS; ++j) t[r][first + j] = matrix.factors[first + j] * sum(sums[r][j]);
}

template <int ROWS, class Element>
static void shrink_all(const LowRank& matrix, const float* const* x, float* const* t) {
    const Element* a = static_cast<const Element*>(matrix.a);
    const int64_t padded_inputs = (matrix.inputs + 15) / 16 * 16;
    for (int64_t first = 0; first < matrix.rank; first += rank_block) {
        const Element* block = a + first * padded_inputs;
        const auto one = [&](auto ranks) {
            shrink_block<ROWS, decltype(ranks)::value>(matrix, block, x, t, first);
        };
        switch (matrix.rank - first) {
            case 1: one(Count<1>()); break;
            case 2: one(Count<2>()); break;
            case 3: one(Count<3>()); break;
            case 4: one(Count<4>()); break;
            case 5: one(Count<5>()); break;
            case 6: one(Count<6>()); break;
            case 7: one(Count<7>()); break;
            default: one(Count<8>()); break;
        }
    }
}

static void shrink(const LowRank& matrix, const float* const* x, int64_t rows, float* const* t) {
    int64_t row = 0;
    const auto some = [&](auto count) {
        constexpr int ROWS = decltype(count)::value;
        for (; row + ROWS <= rows; row += ROWS) {
            with_element(matrix, [&](auto element) {
                shrink_all<ROWS, decltype(element)>(matrix, x + row, t + row);
            });
        }
    };
    if (shrink_rows > 1) some(Count<shrink_rows>());
    some(Count<1>());
}

// y += the outputs of PANELS whole panels, from output `from` on, for ROWS rows.
template <int ROWS, int PANELS, class Element>
static void expand_block(const LowRank& matrix, const float* const* t, int64_t from,
                         float* const* y, int64_t at) {
    const int64_t rank = matrix.rank, stride = rank * 16;
    const Element* b = static_cast<const Element*>(matrix.b) + from / 16 * stride;
    Lanes sums[ROWS][PANELS];
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 32
        for (int p = 0; p < PANELS; ++p) sums[r][p] = zero();
    for (int64_t j = 0; j < rank; ++j) {
        Lanes factors[ROWS];
#pragma GCC unroll 32
        for (int r = 0; r < ROWS; ++r) factors[r] = broadcast(t[r][j]);
#pragma GCC unroll 32
        for (int p = 0; p < PANELS; ++p) {
            const Element* weights = b + p * stride + j * 16;
            __builtin_prefetch(weights + PANELS * stride);
            const Lanes wide = widened(weights);
#pragma GCC unroll 32
            for (int r = 0; r < ROWS; ++r) sums[r][p] = fma(factors[r], wide, sums[r][p]);
        }
    }
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 32
        for (int p = 0; p < PANELS; ++p) {
            float* to = y[r] + at + 16 * p;
            store(to, load(to) + sums[r][p]);
        }
}

// The outputs [from, to) of one panel.
template <class Element>
static void expand_part(const LowRank& matrix, const float* t, int64_t from, int64_t to, float* y) {
    const int64_t rank = matrix.rank;
    const Element* b = static_cast<const Element*>(matrix.b) + from / 16 * rank * 16;
    Lanes all = zero();
    for (int64_t j = 0; j < rank; ++j) all = fma(broadcast(t[j]), widened(b + j * 16), all);
    float lanes[lane_count];
    store(lanes, all);
    for (int64_t output = from; output < to; ++output) y[output - from] += lanes[output % 16];
}

template <int ROWS, int PANELS, class Element>
static void expand_rows_of(const LowRank& matrix, const float* const* t, int64_t from, int64_t to,
                           float* const* y) {
    const int64_t start = from;
    const auto part = [&](int64_t end) {
        for (int r = 0; r < ROWS; ++r)
            expand_part<Element>(matrix, t[r], from, end, y[r] + (from - start));
        from = end;
    };
    if (from % 16) {
        const int64_t end = (from + 15) / 16 * 16;
        part(end < to ? end : to);
    }
    for (; from + 16 * PANELS <= to; from += 16 * PANELS)
        expand_block<ROWS, PANELS, Element>(matrix, t, from, y, from - start);
    for (; from + 16 <= to; from += 16)
        expand_block<ROWS, 1, Element>(matrix, t, from, y, from - start);
    if (from < to) part(to);
}

static void expand(const LowRank& matrix, const float* const* t, int64_t rows, int64_t from,
                   int64_t to, float* const* y) {
    int64_t row = 0;
    const auto some = [&](auto count, auto panels) {
        constexpr int ROWS = decltype(count)::value, PANELS = decltype(panels)::value;
        for (; row + ROWS <= rows; row += ROWS) {
            with_element(matrix, [&](auto element) {
                expand_rows_of<ROWS, PANELS, decltype(element)>(matrix, t + row, from, to, y + row);
            });
        }
    };
    if (expand_rows > 1) some(Count<expand_rows>(), Count<expand_panels>());
    some(Count<1>(), Count<alone_panels>());
}

const LowRankKernels low_rank_kernels = {shrink, expand};

}  // namespace OCKHAM_ISA_NAMESPACE
}  // namespace ockham
