// Blocks of 256 inputs, one of 16 levels: d * s * level, s of 32 inputs. See blocks.h.
#include "kernels/linear.h"
#include "kinds/blocks.h"

namespace ockham {

namespace {

constexpr LevelTable iq3_s_levels{{1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15}, 16};

struct IQ3_S {
    static constexpr const char* name = "iq3_s";
    static constexpr BlockShape shape = {256, 4, 32, false, 16, false, &iq3_s_levels};
};

}  // namespace

}  // namespace ockham

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/block_tiles.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

void iq3_s_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    walk_blocks<Nested<IQ3_S>>(matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#ifdef OCKHAM_TILES

namespace ockham::amx {

void iq3_s_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    block_tile<IQ3_S>(avx512::iq3_s_tile, matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::amx

#endif

#else

#include "kinds/block_kind.h"

namespace ockham {

OCKHAM_DECLARE_TILES(TileFunction iq3_s_tile);

namespace {

OCKHAM_BLOCK_KIND(IQ3_S, iq3_s_tile);

}  // namespace

}  // namespace ockham

#endif
