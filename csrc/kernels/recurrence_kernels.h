// Sums of rows and products of rows, for layers that keep a state of each head; included by
// row_kernels.h.
#pragma once

#include <type_traits>

#include "kernels/functions.h"
#include "kernels/layer_kernels.h"

namespace ockham {
namespace OCKHAM_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int sums_rows = 4, sums_wide = 2;  // 8 registers of sums hide what an fma takes
#else
constexpr int sums_rows = 4, sums_wide = 1;  // as many: 16 lanes are two registers
#endif

// The sums of `ROWS` results in `WIDE` vectors, from the element `at` on; `lanes` of the last one.
template <int ROWS, int WIDE, bool SHORT>
static inline __attribute__((always_inline)) void sum_tile(const RowSums& of, int64_t result,
                                                           int64_t at, int64_t lanes) {
    const auto from = [&](const float* p, int v) {
        return SHORT && v == WIDE - 1 ? load_some(p + v * lane_count, lanes)
                                      : load(p + v * lane_count);
    };
    Lanes sums[ROWS][WIDE];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < WIDE; ++v) {
            if (of.start == nullptr)
                sums[r][v] = zero();
            else
                sums[r][v] = from(of.start + (result + r) * of.length + at, v) * broadcast(of.factor);
        }
    const float* scales[ROWS];
    for (int r = 0; r < ROWS; ++r) scales[r] = of.scales[result + r];
    const float* row = of.rows + at;
    for (int64_t n = 0; n < of.count; ++n, row += of.stride) {
        Lanes values[WIDE];
        for (int v = 0; v < WIDE; ++v) values[v] = from(row, v);
        for (int r = 0; r < ROWS; ++r) {
            const Lanes scale = broadcast(scales[r][n]);
            for (int v = 0; v < WIDE; ++v) sums[r][v] = fma(scale, values[v], sums[r][v]);
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < WIDE; ++v) {
            float* to = of.out + (result + r) * of.length + at + v * lane_count;
            if (SHORT && v == WIDE - 1)
                store_some(to, sums[r][v], lanes);
            else
                store(to, sums[r][v]);
        }
}

template <int ROWS, int WIDE>
static inline void sum_results(const RowSums& of, int64_t result) {
    int64_t at = 0;
    for (; at + WIDE * lane_count <= of.length; at += WIDE * lane_count)
        sum_tile<ROWS, WIDE, false>(of, result, at, lane_count);
    for (; at + lane_count <= of.length; at += lane_count)
        sum_tile<ROWS, 1, false>(of, result, at, lane_count);
    if (at < of.length) sum_tile<ROWS, 1, true>(of, result, at, of.length - at);
}

static void sum_rows(const RowSums& of) {
    int64_t result = 0;
    for (; result + sums_rows <= of.results; result += sums_rows)
        sum_results<sums_rows, sums_wide>(of, result);
    for (; result + 2 <= of.results; result += 2) sum_results<2, 2 * sums_wide>(of, result);
    for (; result < of.results; ++result) sum_results<1, 4 * sums_wide>(of, result);
}

static void dots(const float* x, const float* rows, int64_t stride, int64_t count, int64_t length,
                 float* out) {
    const auto one = [&](auto width, int64_t n) {
        constexpr int rows_at_once = decltype(width)::value;
        Lanes sums[rows_at_once];
        for (Lanes& each : sums) each = zero();
        int64_t at = 0;
        for (; at + lane_count <= length; at += lane_count) {
            const Lanes values = load(x + at);
            for (int r = 0; r < rows_at_once; ++r)
                sums[r] = fma(values, load(rows + (n + r) * stride + at), sums[r]);
        }
        if (at < length) {
            const Lanes values = load_some(x + at, length - at);
            for (int r = 0; r < rows_at_once; ++r)
                sums[r] = fma(values, load_some(rows + (n + r) * stride + at, length - at), sums[r]);
        }
        for (int r = 0; r < rows_at_once; ++r) out[n + r] = sum(sums[r]);
    };
    int64_t n = 0;
    for (; n + 4 <= count; n += 4) one(std::integral_constant<int, 4>(), n);
    for (; n < count; ++n) one(std::integral_constant<int, 1>(), n);
}

}  // namespace OCKHAM_ISA_NAMESPACE
}  // namespace ockham
