// Products with matrices of blocks on AMX tiles: see blocks.h and kernels/tiles.h. Included after
// block_kernels.h.
#pragma once

#include <utility>

#include "kernels/tiles.h"
#include "kinds/block_kernels.h"

#ifdef OCKHAM_TILES

namespace ockham::amx {

using namespace avx512;

// What is multiplied of 4 inputs each of a step of 32: [8][16][4].
template <class Kind, int... UNIT>
OCKHAM_INLINE void all_codes(const uint8_t* step, Codes (&quads)[8], std::integer_sequence<int, UNIT...>) {
    (step_codes<Kind, UNIT>(step, quads[2 * UNIT], quads[2 * UNIT + 1]), ...);
}

template <class Kind>
static void unpack_flat(const PackedMatrix& matrix, int64_t panel, int64_t begin, int64_t end,
                        const Unpacked& to) {
    constexpr BlockShape shape = Kind::shape;
    const int64_t first = panel * (matrix.inputs / shape.inputs) + begin;
    const uint8_t* block = static_cast<const uint8_t*>(matrix.weight) + first * shape.bytes();
    const __m512i zero = _mm512_set1_epi8(static_cast<char>(shape.zero));
    constexpr int64_t steps = shape.steps();
    int8_t* weights = to.weights;
    for (int64_t i = 0; i < end - begin; ++i, block += shape.bytes()) {
        for (int64_t s = 0; s < steps; ++s) {
            const uint8_t* step = block + s * 64 * shape.bits;
            ask_for_step<false>(block, s, steps, shape.bytes());
            Codes quads[8];
            all_codes<Kind>(step, quads, std::make_integer_sequence<int, 4>{});
            OCKHAM_UNROLL
            for (int q = 0; q < 8; ++q, weights += 64) {
                if constexpr (!shape.minima) quads[q] = _mm512_sub_epi8(quads[q], zero);
                _mm512_store_si512(weights, quads[q]);
            }
        }
        store(to.scales + i * panel_outputs, scale_of<Kind>(block));
        if constexpr (shape.minima) store(to.minima + i * panel_outputs, minimum_of<Kind>(block));
    }
}

// Codes times their factors, split in planes: v = 128 (v >> 7) + (v & 127). They fit: |v| is at most
// 255 times 63, less than 128 times 128.
OCKHAM_INLINE void factor_planes(__m512i codes, __m512i zero, __m512i factors, __m512i& low, __m512i& high) {
    const __m512i even_bytes = _mm512_set1_epi16(0x00ff);
    const __m512i even = _mm512_mullo_epi16(
        _mm512_sub_epi16(_mm512_and_si512(codes, even_bytes), zero), factors);
    const __m512i odd = _mm512_mullo_epi16(_mm512_sub_epi16(_mm512_srli_epi16(codes, 8), zero), factors);
    constexpr int pick = 0xca;  // the second where the first has ones, else the third
    low = _mm512_and_si512(
        _mm512_ternarylogic_epi32(even_bytes, even, _mm512_slli_epi16(odd, 8), pick),
        _mm512_set1_epi8(0x7f));
    high = _mm512_ternarylogic_epi32(even_bytes, _mm512_srai_epi16(even, 7), _mm512_slli_epi16(odd, 1), pick);
}

template <class Kind>
static void unpack_nested(const PackedMatrix& matrix, int64_t panel, int64_t begin, int64_t end,
                          const Unpacked& to) {
    constexpr BlockShape shape = Kind::shape;
    constexpr int64_t plane = shape.inputs * panel_outputs;
    constexpr int step_groups = 32 / shape.scale_group, group_quads = 8 / step_groups;
    const int64_t first = panel * (matrix.inputs / shape.inputs) + begin;
    const uint8_t* block = static_cast<const uint8_t*>(matrix.weight) + first * shape.bytes();
    const __m512i zero = _mm512_set1_epi16(shape.minima ? 0 : shape.zero);
    int8_t* weights = to.weights;
    for (int64_t i = 0; i < end - begin; ++i, block += shape.bytes(), weights += plane) {
        for (int64_t s = 0; s < shape.steps(); ++s) {
            ask_for_step<false>(block, s, shape.steps(), shape.bytes());
            Codes quads[8];
            all_codes<Kind>(block + s * 64 * shape.bits, quads, std::make_integer_sequence<int, 4>{});
            const uint8_t* scales = block + shape.scales_at() + s * step_groups * panel_outputs;
            OCKHAM_UNROLL
            for (int q = 0; q < 8; ++q, weights += 64) {
                const uint8_t* own = scales + q / group_quads * panel_outputs;
                const __m512i factor = shape.signed_scales ? signed_scale(own) : unsigned_scale(own);
                const __m512i both =  // of an output, in both halves of its 32 bits
                    _mm512_or_si512(_mm512_slli_epi32(factor, 16),
                                    _mm512_and_si512(factor, _mm512_set1_epi32(0xffff)));
                __m512i low, high;
                factor_planes(quads[q], zero, both, low, high);
                _mm512_store_si512(weights, low);
                _mm512_store_si512(weights + plane, high);
            }
        }
        store(to.scales + i * panel_outputs, scale_of<Kind>(block));
        if constexpr (shape.minima) {
            constexpr int pairs = shape.groups() / 2;
            store(to.minima + i * panel_outputs, minimum_of<Kind>(block));
            OCKHAM_UNROLL
            for (int pair = 0; pair < pairs; ++pair)
                _mm512_store_si512(to.factors + (i * pairs + pair) * 32,
                                   byte_pairs(block + shape.minima_at() + pair * 32));
        }
    }
}

// As a kind's avx512 kernel `plain`, with tiles where rows are many.
template <class Kind>
static void block_tile(TileFunction* plain, const PackedMatrix& matrix, const PreparedInput& input,
                       const Area& area, float* y, int64_t y_stride, const float* bias) {
    constexpr BlockShape shape = Kind::shape;
    constexpr bool nested = shape.scale_group != 0;
    if (!enough(area))
        return plain(matrix, input, area, y, y_stride, bias);
    Steps steps{shape.inputs, matrix.inputs / shape.inputs, nested ? 2 : 1, Minima::none, nullptr};
    if constexpr (nested)
        steps.unpack = unpack_nested<Kind>;
    else
        steps.unpack = unpack_flat<Kind>;
    if (shape.minima)
        steps.minima = !nested                   ? Minima::flat
                       : shape.scale_group == 16 ? Minima::nested_by_16
                                                 : Minima::nested;
    walk(steps, matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::amx

#endif
