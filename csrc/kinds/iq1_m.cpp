// Blocks of 256 inputs in 3 bits, one of 6 levels: d / 8 * s * level, s of 16 inputs. See blocks.h.
#include "kernels/linear.h"
#include "kinds/blocks.h"

namespace ockham {

namespace {

constexpr LevelTable iq1_m_levels{{-9, -7, -1, 1, 7, 9}, 16};

struct IQ1_M {
    static constexpr const char* name = "iq1_m";
    static constexpr BlockShape shape = {256, 3, 16, false, 16, false, &iq1_m_levels, BlockScale::half, 3};
};

}  // namespace

}  // namespace ockham

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/block_tiles.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

void iq1_m_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    walk_blocks<Nested<IQ1_M>>(matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#ifdef OCKHAM_TILES

namespace ockham::amx {

void iq1_m_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    block_tile<IQ1_M>(avx512::iq1_m_tile, matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::amx

#endif

#else

#include "kinds/block_kind.h"

namespace ockham {

OCKHAM_DECLARE_TILES(TileFunction iq1_m_tile);

namespace {

OCKHAM_BLOCK_KIND(IQ1_M, iq1_m_tile);

}  // namespace

}  // namespace ockham

#endif
