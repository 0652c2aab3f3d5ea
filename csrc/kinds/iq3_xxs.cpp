// Blocks of 256 inputs, one of 16 levels: d / 4 * s * level, s of 32 inputs. See blocks.h.
#include "kernels/linear.h"
#include "kinds/blocks.h"

namespace ockham {

namespace {

constexpr LevelTable iq3_xxs_levels{
    {4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62}, 64};

struct IQ3_XXS {
    static constexpr const char* name = "iq3_xxs";
    static constexpr BlockShape shape = {256, 4, 32, false, 64, false, &iq3_xxs_levels, BlockScale::half, 2};
};

}  // namespace

}  // namespace ockham

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/block_tiles.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

void iq3_xxs_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    walk_blocks<Nested<IQ3_XXS>>(matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#ifdef OCKHAM_TILES

namespace ockham::amx {

void iq3_xxs_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    block_tile<IQ3_XXS>(avx512::iq3_xxs_tile, matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::amx

#endif

#else

#include "kinds/block_kind.h"

namespace ockham {

OCKHAM_DECLARE_TILES(TileFunction iq3_xxs_tile);

namespace {

OCKHAM_BLOCK_KIND(IQ3_XXS, iq3_xxs_tile);

}  // namespace

}  // namespace ockham

#endif
