// Products with matrices of two_level.h. Included after a simd_*.h.
//
// A `Kind` has `levels` (see two_level.h) and unit(from, low, high): the levels, plus levels.zero, of 64
// bytes of codes, of their low halves and of their high ones. What differs by instruction set:
//
//   StepSum                         the products of a step, 16 lanes
//   step_start(word)                one that begins at a word of the input's (two_level_kind.h)
//   add_quad(part, levels, x)       adds the products with a row's four values
//   GroupScale, group_scale(bytes)  16 integers s
//   add_step<Kind>(total, part, s)  total + s * part
#pragma once

#include "kernels/linear_kernels.h"
#include "kinds/two_level.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

#if defined(__AVX512F__)

using StepSum = I;
using GroupScale = __m512i;  // as int16 in the low half of each lane, the high one zero
OCKHAM_INLINE StepSum step_start(int32_t word) { return int_broadcast(word); }
OCKHAM_INLINE StepSum add_quad(StepSum part, Codes levels, CodeQuad x) {
    return dot_quad(part, levels, x);
}
OCKHAM_INLINE GroupScale group_scale(const uint8_t* from) {
    const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return _mm512_and_si512(wide, _mm512_set1_epi32(0xffff));
}
// Where a step's sum fits 16 bits, the low half of its lane is the sum, and times s is added in one
// instruction; the high half is multiplied by zero.
template <class Kind>
OCKHAM_INLINE I add_step(I total, StepSum part, GroupScale s) {
    if constexpr (step_fits(Kind::levels)) return _mm512_dpwssd_epi32(total, part, s);
    const __m512i wide = _mm512_srai_epi32(_mm512_slli_epi32(s, 16), 16);
    return _mm512_add_epi32(total, _mm512_mullo_epi32(part, wide));
}

#elif defined(__AVX2__)

// Sums of a step wrap in 16 bits on their way, and fit them in the end: each is of half of its products.
using StepSum = CodeSum;
using GroupScale = I;  // as int16 in both halves of each lane
OCKHAM_INLINE StepSum step_start(int32_t word) { return int_broadcast(word); }
OCKHAM_INLINE StepSum add_quad(StepSum part, Codes levels, CodeQuad x) {
    return dot_codes(part, levels, x);
}
OCKHAM_INLINE GroupScale group_scale(const uint8_t* from) {
    const __m256i all = _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    // Each byte as the high one of both halves of its lane, then moved down with its sign.
    const __m256i first = _mm256_setr_epi8(-1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3,  //
                                           -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7);
    const __m256i second = _mm256_or_si256(first, _mm256_set1_epi16(0x0800));  // 8 more
    return {_mm256_srai_epi16(_mm256_shuffle_epi8(all, first), 8),
            _mm256_srai_epi16(_mm256_shuffle_epi8(all, second), 8)};
}
template <class Kind>
OCKHAM_INLINE I add_step(I total, StepSum part, GroupScale s) {
    return int_add(total, {_mm256_madd_epi16(part.a, s.a), _mm256_madd_epi16(part.b, s.b)});
}

#else

using StepSum = I;
using GroupScale = I;
OCKHAM_INLINE StepSum step_start(int32_t word) { return int_broadcast(word); }
OCKHAM_INLINE StepSum add_quad(StepSum part, Codes levels, CodeQuad x) {
    return dot_quad(part, levels, x);
}
OCKHAM_INLINE GroupScale group_scale(const uint8_t* from) {
    I wide{};
    for (int i = 0; i < 16; ++i) wide[i] = static_cast<int8_t>(from[i]);
    return wide;
}
template <class Kind>
OCKHAM_INLINE I add_step(I total, StepSum part, GroupScale s) {
    return int_add(total, part * s);
}

#endif

// Ranges are cut at spans.
template <class Kind>
struct TwoLevel : CodeBlock {
    static constexpr int64_t step_inputs = two_level_step, step_bytes = step_inputs * panel_outputs / 2;
    static constexpr int64_t span_steps = two_level_span / two_level_step;
    static_assert(sums_fit(Kind::levels), "an integer sum would wrap");

    // total[r][p] += s times the products of a step.
    template <int ROWS, int PANELS>
    OCKHAM_INLINE void add(I (&total)[ROWS][PANELS], const uint8_t* weight, int64_t stride,
                           const uint8_t* scale, int64_t scale_stride, const uint8_t* x,
                           int64_t row_bytes, const int32_t* word, int64_t words, int64_t ahead) {
        StepSum part[ROWS][PANELS];
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const StepSum start = step_start(word[r * words]);
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) part[r][p] = start;
        }
        OCKHAM_UNROLL
        for (int unit = 0; unit < 4; ++unit, weight += 64, x += 8) {
            Codes low[PANELS], high[PANELS];
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                const uint8_t* from = weight + p * stride;
                ask_ahead<ROWS <= CodeBlock::waiting_rows>(from, ahead);
                Kind::unit(from, low[p], high[p]);
            }
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const CodeQuad wide = code_quad(x + r * row_bytes);
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) part[r][p] = add_quad(part[r][p], low[p], wide);
            }
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const CodeQuad wide = code_quad(x + r * row_bytes + 4);
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) part[r][p] = add_quad(part[r][p], high[p], wide);
            }
        }
        OCKHAM_UNROLL
        for (int p = 0; p < PANELS; ++p) {
            const GroupScale s = group_scale(scale + p * scale_stride);
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r) total[r][p] = add_step<Kind>(total[r][p], part[r][p], s);
        }
    }

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        const int64_t steps = tile.matrix.inputs / step_inputs, spans = tile.input.form.groups();
        const int64_t group_steps = tile.matrix.group / step_inputs, groups = steps / group_steps;
        const int64_t panel_stride = steps * step_bytes;
        const int64_t scale_stride = groups * panel_outputs + panel_outputs * 4;
        const uint8_t* weight = static_cast<const uint8_t*>(tile.matrix.weight) + panel * panel_stride;
        const uint8_t* scales = static_cast<const uint8_t*>(tile.matrix.scale) + panel * scale_stride;
        const Jump<(ROWS <= waiting_rows), PANELS> jump(weight, panel_stride);
        const uint8_t* x = tile.values(row);
        const int64_t words = spans * tile.input.form.kind->offset_words;
        const int32_t* word = tile.input.offsets + row * words;
        const float* of_x = tile.input.scales + row * spans;
        Partial<ROWS, PANELS> y(tile, row, panel, range.first);
        for (int64_t begin = range.begin; begin < range.end; begin += span_steps) {
            const int64_t end = begin + span_steps < range.end ? begin + span_steps : range.end;
            I total[ROWS][PANELS];
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r)
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) total[r][p] = int_broadcast(0);
            for (int64_t step = begin; step < end; ++step) {
                const uint8_t* from = weight + step * step_bytes;
                add<ROWS, PANELS>(total, from, panel_stride,
                                  scales + step / group_steps * panel_outputs, scale_stride,
                                  x + step * step_inputs, tile.row_bytes, word + step, words,
                                  jump.at(from));
            }
            const int64_t span = begin / span_steps;
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                const uint8_t* behind = scales + p * scale_stride + groups * panel_outputs;
                const F scale = load(reinterpret_cast<const float*>(behind));
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    y.add(r, p, to_float(total[r][p]), mul(broadcast(of_x[r * spans + span]), scale));
            }
        }
        y.finish(tile, row, panel, range.last);
    }
};

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
