// Blocks of 256 inputs that are -1, 0 or 1 in 2 bits: d * (code - 1). See blocks.h.
#include "kernels/linear.h"
#include "kinds/blocks.h"

namespace ockham {

namespace {

struct TQ2_0 {
    static constexpr const char* name = "tq2_0";
    static constexpr BlockShape shape = {256, 2, 0, false, 1};
};

}  // namespace

}  // namespace ockham

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/block_tiles.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

void tq2_0_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    walk_blocks<Flat<TQ2_0>>(matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#ifdef OCKHAM_TILES

namespace ockham::amx {

void tq2_0_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    block_tile<TQ2_0>(avx512::tq2_0_tile, matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::amx

#endif

#else

#include "kinds/block_kind.h"

namespace ockham {

OCKHAM_DECLARE_TILES(TileFunction tq2_0_tile);

namespace {

OCKHAM_BLOCK_KIND(TQ2_0, tq2_0_tile);

}  // namespace

}  // namespace ockham

#endif
