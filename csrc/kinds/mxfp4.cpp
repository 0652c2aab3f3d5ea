// Blocks of 32 inputs in 4 bits, floats of the form E2M1 (here doubled): 2^(e - 128) * level. See blocks.h.
#include "kernels/linear.h"
#include "kinds/blocks.h"

namespace ockham {

namespace {

struct MXFP4 {
    static constexpr const char* name = "mxfp4";
    static constexpr BlockShape shape = {32, 4, 0, false, 12, false, &e2m1_levels, BlockScale::exponent};
};

}  // namespace

}  // namespace ockham

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/block_tiles.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

void mxfp4_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    walk_blocks<Flat<MXFP4>>(matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#ifdef OCKHAM_TILES

namespace ockham::amx {

void mxfp4_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    block_tile<MXFP4>(avx512::mxfp4_tile, matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::amx

#endif

#else

#include "kinds/block_kind.h"

namespace ockham {

OCKHAM_DECLARE_TILES(TileFunction mxfp4_tile);

namespace {

OCKHAM_BLOCK_KIND(MXFP4, mxfp4_tile);

}  // namespace

}  // namespace ockham

#endif
