// Blocks of 256 inputs in 3 bits, one of 6 levels: d / 8 * s * level, s of 16 inputs. See blocks.h.
#include "kernels/linear.h"
#include "kinds/blocks.h"

namespace ockham {

namespace {

constexpr LevelTable iq2_s_levels{{8, 25, 43, -8, -25, -43}, 44};

struct IQ2_S {
    static constexpr const char* name = "iq2_s";
    static constexpr BlockShape shape = {256, 3, 16, false, 44, false, &iq2_s_levels, BlockScale::half, 3};
};

}  // namespace

}  // namespace ockham

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/block_tiles.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

void iq2_s_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    walk_blocks<Nested<IQ2_S>>(matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#ifdef OCKHAM_TILES

namespace ockham::amx {

void iq2_s_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    block_tile<IQ2_S>(avx512::iq2_s_tile, matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::amx

#endif

#else

#include "kinds/block_kind.h"

namespace ockham {

OCKHAM_DECLARE_TILES(TileFunction iq2_s_tile);

namespace {

OCKHAM_BLOCK_KIND(IQ2_S, iq2_s_tile);

}  // namespace

}  // namespace ockham

#endif
