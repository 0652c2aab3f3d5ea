// Products with matrices of codebook.h. Included after a simd_*.h.
//
// A register `r` of a panel is 64 bytes, which instruction sets read in slices. What differs by them:
//
//   slice_bytes                        of a register: 64 (16 outputs' quarters), 32, or 16
//   Bytes, load_bytes(from)            a slice
//   low_codes(bytes), high_codes(bytes)   the low or high four bits of each byte
//   pair_codes<J>(bytes)               bits 2 J and 2 J + 1 of each byte
//   third_bits(from)                   the 8 bytes of each lane of a slice, for with_third<J>(codes, bits)
//   look_up(table, codes)              bytes of a table by codes, in each 16 bytes
//   Inputs, sixteen(from)              16 values of a row, for all lanes
//   Sums, no_sums(), add_products(sums, levels, inputs)
//   store_sums(to, four)               the sums of the outputs of a slice, from its four registers
#pragma once

#include "kernels/linear_kernels.h"
#include "kinds/codebook.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

#if defined(__AVX512F__)

constexpr int64_t slice_bytes = 64;
using Bytes = __m512i;
using Inputs = __m512i;
using Sums = __m512i;
OCKHAM_INLINE Bytes load_bytes(const uint8_t* from) { return _mm512_loadu_si512(from); }
OCKHAM_INLINE Bytes low_codes(Bytes bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(0x0f)); }
OCKHAM_INLINE Bytes high_codes(Bytes bytes) { return low_codes(_mm512_srli_epi16(bytes, 4)); }
template <int J>
OCKHAM_INLINE Bytes pair_codes(Bytes bytes) {
    return _mm512_and_si512(_mm512_srli_epi16(bytes, 2 * J), _mm512_set1_epi8(3));
}
OCKHAM_INLINE Bytes third_bits(const uint8_t* from) {
    const __m512i bytes = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    const __m512i twice = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3), bytes);
    return _mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4));
}
template <int J>
OCKHAM_INLINE Bytes with_third(Bytes codes, Bytes bits) {
    const __m512i moved = J < 2 ? _mm512_slli_epi16(bits, J < 2 ? 2 - J : 0)
                                : _mm512_srli_epi16(bits, J < 2 ? 0 : J - 2);
    return _mm512_ternarylogic_epi32(codes, moved, _mm512_set1_epi8(4), 0xf8);  // codes | (moved & 4)
}
OCKHAM_INLINE Bytes look_up(Bytes table, Bytes codes) { return _mm512_shuffle_epi8(table, codes); }
OCKHAM_INLINE Inputs sixteen(const uint8_t* from) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
OCKHAM_INLINE Sums no_sums() { return _mm512_setzero_si512(); }
OCKHAM_INLINE Sums add_products(Sums sums, Bytes levels, Inputs x) { return dot_quad(sums, levels, x); }
OCKHAM_INLINE void store_sums(int32_t* to, const Sums (&four)[4]) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(four[0], four[1]),
                                        _mm512_unpackhi_epi32(four[0], four[1]));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(four[2], four[3]),
                                        _mm512_unpackhi_epi32(four[2], four[3]));
    _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd)));
}
struct CodebookBlock {
    static constexpr int rows = 6, waiting_rows = 3;
    static constexpr int panels(int64_t) { return 1; }
};

#elif defined(__AVX2__)

constexpr int64_t slice_bytes = 32;
using Bytes = __m256i;
using Inputs = __m256i;
using Sums = __m256i;
OCKHAM_INLINE Bytes load_bytes(const uint8_t* from) { return byte_row(from, 0); }
OCKHAM_INLINE Bytes low_codes(Bytes bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(0x0f)); }
OCKHAM_INLINE Bytes high_codes(Bytes bytes) { return low_codes(_mm256_srli_epi16(bytes, 4)); }
template <int J>
OCKHAM_INLINE Bytes pair_codes(Bytes bytes) {
    return _mm256_and_si256(_mm256_srli_epi16(bytes, 2 * J), _mm256_set1_epi8(3));
}
OCKHAM_INLINE Bytes third_bits(const uint8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m256i twice = _mm256_permute4x64_epi64(_mm256_castsi128_si256(bytes), 0x50);  // 0, 0, 1, 1
    return _mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 4, 0, 4));
}
template <int J>
OCKHAM_INLINE Bytes with_third(Bytes codes, Bytes bits) {
    const __m256i moved = J < 2 ? _mm256_slli_epi16(bits, J < 2 ? 2 - J : 0)
                                : _mm256_srli_epi16(bits, J < 2 ? 0 : J - 2);
    return _mm256_or_si256(codes, _mm256_and_si256(moved, _mm256_set1_epi8(4)));
}
OCKHAM_INLINE Bytes look_up(Bytes table, Bytes codes) { return _mm256_shuffle_epi8(table, codes); }
OCKHAM_INLINE Inputs sixteen(const uint8_t* from) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
OCKHAM_INLINE Sums no_sums() { return _mm256_setzero_si256(); }
// Two products fit 16 bits: 2 * 127 * 127 (codebook.h).
OCKHAM_INLINE Sums add_products(Sums sums, Bytes levels, Inputs x) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(levels, x), _mm256_set1_epi16(1)));
}
OCKHAM_INLINE void store_sums(int32_t* to, const Sums (&four)[4]) {
    const __m256i ab = _mm256_add_epi32(_mm256_unpacklo_epi32(four[0], four[1]),
                                        _mm256_unpackhi_epi32(four[0], four[1]));
    const __m256i cd = _mm256_add_epi32(_mm256_unpacklo_epi32(four[2], four[3]),
                                        _mm256_unpackhi_epi32(four[2], four[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd)));
}
struct CodebookBlock {
    static constexpr int rows = 3, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};

#else

constexpr int64_t slice_bytes = 16;
typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef int8_t Inputs __attribute__((vector_size(16)));
using Sums = int32_t;
OCKHAM_INLINE Bytes load_bytes(const uint8_t* from) {
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return bytes;
}
OCKHAM_INLINE Bytes low_codes(Bytes bytes) { return bytes & 15; }
OCKHAM_INLINE Bytes high_codes(Bytes bytes) { return bytes >> 4; }
template <int J>
OCKHAM_INLINE Bytes pair_codes(Bytes bytes) {
    return (bytes >> (2 * J)) & 3;
}
OCKHAM_INLINE Bytes third_bits(const uint8_t* from) {
    Bytes bits;
    for (int i = 0; i < 8; ++i) {
        bits[i] = from[i];
        bits[i + 8] = static_cast<uint8_t>(from[i] >> 4);
    }
    return bits;
}
template <int J>
OCKHAM_INLINE Bytes with_third(Bytes codes, Bytes bits) {
    return codes | ((bits >> J) & 1) << 2;
}
OCKHAM_INLINE Bytes look_up(Bytes table, Bytes codes) {
    Bytes found;
    for (int i = 0; i < 16; ++i) found[i] = table[codes[i]];
    return found;
}
OCKHAM_INLINE Inputs sixteen(const uint8_t* from) {
    Inputs x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
OCKHAM_INLINE Sums no_sums() { return 0; }
OCKHAM_INLINE Sums add_products(Sums sums, Bytes levels, Inputs x) {
    for (int i = 0; i < 16; ++i) sums += static_cast<int32_t>(levels[i]) * x[i];
    return sums;
}
OCKHAM_INLINE void store_sums(int32_t* to, const Sums (&four)[4]) {
    for (int r = 0; r < 4; ++r) to[r] = four[r];
}
struct CodebookBlock {
    static constexpr int rows = 2, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};

#endif

template <int BITS>
struct CodebookProduct : CodebookBlock {
    static constexpr int64_t step_inputs = codebook_unit, step_bytes = unit_bytes(BITS);
    static constexpr int64_t span_steps = codebook_span / codebook_unit;
    static constexpr int64_t slice_outputs = panel_outputs * slice_bytes / 64;

    template <int ROWS, int R>
    OCKHAM_INLINE void add(Sums (&sums)[ROWS][4], Bytes levels, const uint8_t* x, int64_t row_bytes) {
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            sums[r][R] = add_products(sums[r][R], levels, sixteen(x + r * row_bytes));
    }

    // sums[r][R] += the products of the register R of a unit with the rows' values.
    template <int ROWS, int R>
    OCKHAM_INLINE void add_register(Sums (&sums)[ROWS][4], const uint8_t* unit, const uint8_t* tables,
                                    int64_t slice, const uint8_t* x, int64_t row_bytes, int64_t ahead) {
        constexpr bool waits = ROWS <= waiting_rows;
        const int64_t at = R * 64 + slice * slice_bytes;
        const Bytes table = load_bytes(tables + at);
        if constexpr (BITS == 4) {
            OCKHAM_UNROLL
            for (int half = 0; half < 2; ++half) {
                const uint8_t* from = unit + half * 256 + at;
                if (slice == 0) ask_ahead<waits>(from, ahead);
                const Bytes both = load_bytes(from);
                add<ROWS, R>(sums, look_up(table, low_codes(both)), x + half * 32, row_bytes);
                add<ROWS, R>(sums, look_up(table, high_codes(both)), x + half * 32 + 16, row_bytes);
            }
        } else {
            if (slice == 0) ask_ahead<waits>(unit + at, ahead);
            const uint8_t* third = unit + 256 + at / 2;
            if (slice == 0 && R % 2 == 0) ask_ahead<waits>(third, ahead);
            const Bytes pairs = load_bytes(unit + at), bits = third_bits(third);
            add<ROWS, R>(sums, look_up(table, with_third<0>(pair_codes<0>(pairs), bits)), x, row_bytes);
            add<ROWS, R>(sums, look_up(table, with_third<1>(pair_codes<1>(pairs), bits)), x + 16, row_bytes);
            add<ROWS, R>(sums, look_up(table, with_third<2>(pair_codes<2>(pairs), bits)), x + 32, row_bytes);
            add<ROWS, R>(sums, look_up(table, with_third<3>(pair_codes<3>(pairs), bits)), x + 48, row_bytes);
        }
    }

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        if constexpr (PANELS > 1) {  // never many: sums of one panel fill the registers
            block<ROWS, 1>(tile, row, panel, range);
            block<ROWS, PANELS - 1>(tile, row, panel + 1, range);
        } else {
            const PackedMatrix& matrix = tile.matrix;
            const int64_t spans = tile.input.form.groups();
            const int64_t panel_stride = matrix.inputs / step_inputs * step_bytes;
            const uint8_t* weight = static_cast<const uint8_t*>(matrix.weight) + panel * panel_stride;
            const uint8_t* book = static_cast<const uint8_t*>(matrix.scale) + panel * book_bytes(matrix);
            const F scale = load(reinterpret_cast<const float*>(book + table_bytes));
            const uint8_t* x = tile.values(row);
            const float* of_x = tile.input.scales + row * spans;
            const int32_t* offset = tile.input.offsets + row * spans;
            const Jump<(ROWS <= waiting_rows), 1> jump(weight, panel_stride);
            Partial<ROWS, 1> y(tile, row, panel, range.first);
            for (int64_t begin = range.begin; begin < range.end; begin += span_steps) {
                const int64_t end = begin + span_steps < range.end ? begin + span_steps : range.end;
                alignas(64) int32_t total[ROWS][panel_outputs];
                for (int64_t slice = 0; slice < 64 / slice_bytes; ++slice) {
                    Sums sums[ROWS][4];
                    OCKHAM_UNROLL
                    for (int r = 0; r < ROWS; ++r)
                        OCKHAM_UNROLL
                        for (int i = 0; i < 4; ++i) sums[r][i] = no_sums();
                    for (int64_t step = begin; step < end; ++step) {
                        const uint8_t* unit = weight + step * step_bytes;
                        const uint8_t* from = x + step * step_inputs;
                        const int64_t ahead = jump.at(unit);
                        add_register<ROWS, 0>(sums, unit, book, slice, from, tile.row_bytes, ahead);
                        add_register<ROWS, 1>(sums, unit, book, slice, from, tile.row_bytes, ahead);
                        add_register<ROWS, 2>(sums, unit, book, slice, from, tile.row_bytes, ahead);
                        add_register<ROWS, 3>(sums, unit, book, slice, from, tile.row_bytes, ahead);
                    }
                    OCKHAM_UNROLL
                    for (int r = 0; r < ROWS; ++r) store_sums(total[r] + slice * slice_outputs, sums[r]);
                }
                const int64_t span = begin / span_steps;
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r) {
                    const I whole = int_add(as_int(load(reinterpret_cast<const float*>(total[r]))),
                                            int_broadcast(offset[r * spans + span]));
                    y.add(r, 0, to_float(whole), mul(broadcast(of_x[r * spans + span]), scale));
                }
            }
            if (range.last) add_apart<ROWS>(y, tile, x, of_x, book, scale);
            y.finish(tile, row, panel, range.last);
        }
    }

    template <int ROWS>
    static void add_apart(Partial<ROWS, 1>& y, const Tile& tile, const uint8_t* x, const float* of_x,
                          const uint8_t* book, F scale) {
        const int64_t spans = tile.input.form.groups(), apart = apart_of(tile.matrix);
        const int64_t inputs = tile.matrix.inputs;
        const uint16_t* column = reinterpret_cast<const uint16_t*>(book + table_bytes + panel_outputs * 4);
        const int16_t* extra = reinterpret_cast<const int16_t*>(column + apart * panel_outputs);
        alignas(64) float sum[panel_outputs], own[panel_outputs];
        for (int64_t i = 0; i < apart; ++i, column += panel_outputs, extra += panel_outputs)
            for (int r = 0; r < ROWS; ++r) {
                const int8_t* values = reinterpret_cast<const int8_t*>(x + r * tile.row_bytes);
                for (int lane = 0; lane < panel_outputs; ++lane) {
                    // A file may say anything: what lies beyond the inputs is taken for the first.
                    const int64_t k = column[lane] < inputs ? column[lane] : 0;
                    sum[lane] = static_cast<float>(values[k] * extra[lane]);
                    own[lane] = of_x[r * spans + k / codebook_span];
                }
                y.add(r, 0, load(sum), mul(load(own), scale));
            }
    }
};

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
