// Floats of 4 bits (E2M1, twice as large) under two levels of scales: w = level[code] * s * scale. See
// two_level.h.
#include "kernels/linear.h"
#include "kinds/two_level.h"

namespace ockham {

// ockham/weights/fp4.py.
static constexpr int fp4_levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct Fp4 {
    static constexpr const char* name = "fp4";
    static constexpr Levels levels = {12, 12};
    static int level(int code) { return fp4_levels[code]; }
};

}  // namespace ockham

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/two_level_kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// The levels plus 12, which products read as unsigned bytes.
struct Fp4Table {
    alignas(16) uint8_t bytes[16];
    constexpr Fp4Table() : bytes() {
        for (int i = 0; i < 16; ++i) bytes[i] = static_cast<uint8_t>(fp4_levels[i] + 12);
    }
};
static constexpr Fp4Table fp4_table;

struct Fp4Units {
    static constexpr Levels levels = Fp4::levels;
#if defined(__AVX512F__)
    OCKHAM_INLINE void unit(const uint8_t* from, Codes& low, Codes& high) {
        const __m512i table =
            _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(fp4_table.bytes)));
        codes(from, low, high);
        low = _mm512_shuffle_epi8(table, low);
        high = _mm512_shuffle_epi8(table, high);
    }
#elif defined(__AVX2__)
    OCKHAM_INLINE void unit(const uint8_t* from, Codes& low, Codes& high) {
        const __m256i table =
            _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(fp4_table.bytes)));
        codes(from, low, high);
        low = {_mm256_shuffle_epi8(table, low.a), _mm256_shuffle_epi8(table, low.b)};
        high = {_mm256_shuffle_epi8(table, high.a), _mm256_shuffle_epi8(table, high.b)};
    }
#else
    OCKHAM_INLINE void unit(const uint8_t* from, Codes& low, Codes& high) {
        uint8_t low_levels[64], high_levels[64];
        for (int i = 0; i < 64; ++i) {
            low_levels[i] = fp4_table.bytes[from[i] & 15];
            high_levels[i] = fp4_table.bytes[from[i] >> 4];
        }
        low = quad_weights(low_levels);
        high = quad_weights(high_levels);
    }
#endif
};

void fp4_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
              int64_t y_stride, const float* bias) {
    using Format = TwoLevel<Fp4Units>;
    walk<Format>(matrix, input, area, y, y_stride, bias, Format::span_steps);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include "isa/each.h"
#include "kinds/two_level_kind.h"

namespace ockham {

OCKHAM_DECLARE(TileFunction fp4_tile);

namespace {

TileFunction* const tiles[] = OCKHAM_EACH_ISA(fp4_tile);
const LinearKind kind = TwoLevelKind<Fp4>::kind(tiles);
const AddedKind added{kind};

}  // namespace

}  // namespace ockham

#endif
