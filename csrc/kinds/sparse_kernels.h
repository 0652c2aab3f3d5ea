// Products with matrices of sparse.h. Included after a simd_*.h.
//
// A source gives the registers of a unit one after another, as the weights of a dense kind: `next<WAITS>()`.
// One reads what was expanded before; the others, `Expander<V>(unit)`, are the ways that processors have to
// expand, of which `write(to)` writes a register as dense kinds store it. What is not stored is 128 there where
// values are bytes (which are stored plus 128, as QuadWeights are read), and 0 where they are words.
#pragma once

#include "kernels/linear_kernels.h"
#include "kinds/sparse.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

#define OCKHAM_METHOD __attribute__((always_inline))

template <int V>
struct DenseWeights;
template <>
struct DenseWeights<1> {
    using Type = QuadWeights;
    static OCKHAM_METHOD Type load(const uint8_t* from) { return quad_weights(from); }
};
template <>
struct DenseWeights<2> {
    using Type = PairWeights;
    static OCKHAM_METHOD Type load(const uint8_t* from) { return pair_weights(from); }
};

// The masks of a unit that are left, and its values.
template <int V>
struct Place {
    const uint8_t* masks;
    const uint8_t* values;

    OCKHAM_METHOD explicit Place(const uint8_t* unit) : masks(unit), values(unit + mask_bytes) {}

    // Asks for what comes long after. A unit's registers ask for all lines but those of its masks.
    template <bool WAITS>
    OCKHAM_METHOD void ask_for_masks() const {
        ask_ahead<WAITS>(masks, 0);
        ask_ahead<WAITS>(masks + 64, 0);
    }
    template <bool WAITS>
    OCKHAM_METHOD void ask_for_values() const {
        ask_ahead<WAITS>(values, 0);
    }
};

#if defined(__AVX2__)

// Where each byte of eight comes from, by the bits of a mask; 0x80 and more stands for what is not stored.
struct PlaceTables {
    alignas(16) uint8_t low[256][16];   // of the first eight; then how many these are, eight times
    alignas(16) uint8_t high[256][16];  // zeros; then of the second eight, counted from zero
    alignas(16) uint8_t words[256][16];

    constexpr PlaceTables() : low(), high(), words() {
        for (int mask = 0; mask < 256; ++mask) {
            uint8_t taken = 0;
            for (int bit = 0; bit < 8; ++bit) {
                const bool there = mask >> bit & 1;
                low[mask][bit] = high[mask][8 + bit] = there ? taken : 0x80;
                words[mask][2 * bit] = there ? static_cast<uint8_t>(2 * taken) : 0x80;
                words[mask][2 * bit + 1] = there ? static_cast<uint8_t>(2 * taken + 1) : 0x80;
                taken = static_cast<uint8_t>(taken + there);
            }
            for (int byte = 8; byte < 16; ++byte) low[mask][byte] = taken;
        }
    }
};
static constexpr PlaceTables place_tables;

OCKHAM_INLINE __m128i sixteen_bytes(const uint8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

// Shuffles of 16 bytes, found in tables.
template <int V>
struct ByTables : Place<V> {
    using Place<V>::Place, Place<V>::masks, Place<V>::values;

    template <bool WAITS>
    OCKHAM_METHOD typename DenseWeights<V>::Type next() {
#if defined(__AVX512F__)
        alignas(64) uint8_t whole[64];
        write<WAITS>(whole);
        return DenseWeights<V>::load(whole);
#else
        this->template ask_for_values<WAITS>();
        const __m256i a = half(), b = half();
        if constexpr (V == 1) {
            const __m256i low = _mm256_set1_epi16(0x00ff);
            return {{_mm256_and_si256(a, low), _mm256_and_si256(b, low)},
                    {_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8)}};
        } else {
            return {{even_bf16(a), even_bf16(b)}, {odd_bf16(a), odd_bf16(b)}};
        }
#endif
    }
    template <bool WAITS>
    OCKHAM_METHOD void write(uint8_t* to) {
        this->template ask_for_values<WAITS>();
        _mm256_store_si256(reinterpret_cast<__m256i*>(to), half());
        _mm256_store_si256(reinterpret_cast<__m256i*>(to) + 1, half());
    }

   private:
    OCKHAM_METHOD __m256i half() {
        const __m128i first = sixteen(), second = sixteen();
        return _mm256_set_m128i(second, first);
    }
    OCKHAM_METHOD __m128i sixteen() {
        if constexpr (V == 1) {
            uint16_t both;
            __builtin_memcpy(&both, masks, 2);
            const uint32_t mask = both;
            const __m128i places = _mm_add_epi8(sixteen_bytes(place_tables.low[mask & 255]),
                                                sixteen_bytes(place_tables.high[mask >> 8]));
            const __m128i found = _mm_shuffle_epi8(sixteen_bytes(values), places);
            masks += 2;
            values += __builtin_popcount(mask);
            return _mm_blendv_epi8(found, _mm_set1_epi8(-128), places);
        } else {
            const uint32_t mask = *masks++;
            const __m128i places = sixteen_bytes(place_tables.words[mask]);
            const __m128i found = _mm_shuffle_epi8(sixteen_bytes(values), places);
            values += 2 * __builtin_popcount(mask);
            return found;
        }
    }
};

#else

// Value by value.
template <int V>
struct ByBits : Place<V> {
    using Place<V>::Place, Place<V>::masks, Place<V>::values;

    template <bool WAITS>
    OCKHAM_METHOD typename DenseWeights<V>::Type next() {
        uint8_t whole[64];
        write<WAITS>(whole);
        return DenseWeights<V>::load(whole);
    }
    template <bool WAITS>
    OCKHAM_METHOD void write(uint8_t* to) {
        uint64_t mask = 0;
        __builtin_memcpy(&mask, masks, 8 / V);
        __builtin_memset(to, V == 1 ? 128 : 0, 64);
        for (masks += 8 / V; mask; mask &= mask - 1, values += V)
            __builtin_memcpy(to + __builtin_ctzll(mask) * V, values, V);
    }
};

#endif

#if defined(__AVX512F__)

// One instruction for a register, of AVX512-VBMI2, which not every processor has that has the rest. Written
// as assembly, because the file is not compiled for it. It keeps what a register holds in the places of what
// is not stored: where it fills in zeros instead, it is twice as slow (Zen 4).
template <int V>
struct ByInstruction : Place<V> {
    using Place<V>::Place, Place<V>::masks, Place<V>::values;

    static bool there() {
        static const bool found = __builtin_cpu_supports("avx512vbmi2");
        return found;
    }
    template <bool WAITS>
    OCKHAM_METHOD __m512i next() {
        this->template ask_for_values<WAITS>();
        const __m512i packed = _mm512_loadu_si512(values);
        if constexpr (V == 1) {
            uint64_t mask;
            __builtin_memcpy(&mask, masks, 8);
            __m512i whole = _mm512_set1_epi8(-128);
            asm("vpexpandb %2, %0 %{%1%}" : "+v"(whole) : "Yk"(mask), "v"(packed));
            masks += 8;
            values += __builtin_popcountll(mask);
            return whole;
        } else {
            uint32_t mask;
            __builtin_memcpy(&mask, masks, 4);
            __m512i whole = _mm512_setzero_si512();
            asm("vpexpandw %2, %0 %{%1%}" : "+v"(whole) : "Yk"(mask), "v"(packed));
            masks += 4;
            values += 2 * __builtin_popcount(mask);
            return whole;
        }
    }
    template <bool WAITS>
    OCKHAM_METHOD void write(uint8_t* to) {
        _mm512_store_si512(to, next<WAITS>());
    }
};

#endif

// A unit that was expanded before.
template <int V>
struct Written {
    const uint8_t* at;

    OCKHAM_METHOD explicit Written(const uint8_t* unit) : at(unit) {}
    template <bool WAITS>
    OCKHAM_METHOD void ask_for_masks() const {}
    template <bool WAITS>
    OCKHAM_METHOD typename DenseWeights<V>::Type next() {
        at += 64;
        return DenseWeights<V>::load(at - 64);
    }
};

// Where the sources of a panel's units begin: in the matrix itself, or where a range of them was written,
// which began with the unit `first`.
template <class Source>
struct Units {
    const Starts& starts;
    Source at(int64_t panel, int64_t, int64_t unit) const { return Source(starts.unit(panel, unit)); }
};
template <int V>
struct Units<Written<V>> {
    const uint8_t* memory;
    int64_t panel_bytes, first;
    Written<V> at(int64_t, int64_t p, int64_t unit) const {
        return Written<V>(memory + p * panel_bytes + (unit - first) * dense_bytes(V));
    }
};

// The blocks of a kind for 1 to `Kernel::rows` rows of one panel or of two.
template <class Kernel, class Source, int PANELS, class = std::make_integer_sequence<int, Kernel::rows>>
struct SparseBlocks;
template <class Kernel, class Source, int PANELS, int... ROW>
struct SparseBlocks<Kernel, Source, PANELS, std::integer_sequence<int, ROW...>> {
    using Function = void (*)(const Tile&, int64_t row, int64_t panel, Range, const Units<Source>&);
    static constexpr Function table[] = {Kernel::template block<ROW + 1, PANELS, Source>...};
};

template <class Expander>
static void write_unit(const uint8_t* unit, int64_t bytes, uint8_t* to) {
    Expander from(unit);
    from.template ask_for_masks<false>();
    for (int64_t i = 0; i < bytes; i += 64) from.template write<false>(to + i);
}

// walk() of linear_kernels.h, except that what several blocks of rows multiply with is expanded once.
template <class Kernel, class Expander>
static void walk_sparse(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
                        int64_t y_stride, const float* bias) {
    constexpr int V = Kernel::value_bytes, most_rows = Kernel::rows;
    constexpr int64_t unit_bytes = dense_bytes(V);
    const int64_t row_begin = area.row_begin, rows = area.row_end - row_begin;
    if (rows <= 0) return;
    const Tile tile{matrix, input, input.form.row_bytes(), y, y_stride, bias};
    const int64_t units = units_of(matrix), blocks = (rows + most_rows - 1) / most_rows;
    const Starts starts(matrix, V, units * Kernel::unit_scale_bytes);
    const int panels = Kernel::panels((rows + blocks - 1) / blocks);
    alignas(64) uint8_t memory[range_bytes];
    const int64_t panel_bytes = range_bytes / panels, range_units = panel_bytes / unit_bytes;
    const auto compute = [&](auto count, int64_t panel) {
        constexpr int PANELS = decltype(count)::value;
        if (blocks == 1) {
            SparseBlocks<Kernel, Expander, PANELS>::table[rows - 1](tile, row_begin, panel,
                                                                    {0, units, true, true}, {starts});
            return;
        }
        for (int64_t begin = 0; begin < units; begin += range_units) {
            const int64_t end = begin + range_units < units ? begin + range_units : units;
            for (int p = 0; p < PANELS; ++p)
                for (int64_t unit = begin; unit < end; ++unit)
                    write_unit<Expander>(starts.unit(panel + p, unit), unit_bytes,
                                         memory + p * panel_bytes + (unit - begin) * unit_bytes);
            const Units<Written<V>> written{memory, panel_bytes, begin};
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t first = row_begin + rows * block / blocks;
                const int64_t last = row_begin + rows * (block + 1) / blocks;
                SparseBlocks<Kernel, Written<V>, PANELS>::table[last - first - 1](
                    tile, first, panel, {begin, end, begin == 0, end == units}, written);
            }
        }
    };
    for (int64_t panel = area.panel_begin; panel < area.panel_end;) {
        const bool wide = panels == 2 && panel + 2 <= area.panel_end;
        if (wide)
            compute(std::integral_constant<int, 2>(), panel);
        else
            compute(std::integral_constant<int, 1>(), panel);
        panel += wide ? 2 : 1;
    }
}

// The same with the expander that the processor has.
template <class Kernel>
static void multiply_sparse(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
                            int64_t y_stride, const float* bias) {
    constexpr int V = Kernel::value_bytes;
#if defined(__AVX512F__)
    if (ByInstruction<V>::there())
        return walk_sparse<Kernel, ByInstruction<V>>(matrix, input, area, y, y_stride, bias);
#endif
#if defined(__AVX2__)
    walk_sparse<Kernel, ByTables<V>>(matrix, input, area, y, y_stride, bias);
#else
    walk_sparse<Kernel, ByBits<V>>(matrix, input, area, y, y_stride, bias);
#endif
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
