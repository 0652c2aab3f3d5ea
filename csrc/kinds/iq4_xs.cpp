// Blocks of 256 inputs in 4 bits, one of 16 levels: d * s * level, the signed s of 32 inputs. See blocks.h.
#include "kernels/linear.h"
#include "kinds/blocks.h"

namespace ockham {

namespace {

struct IQ4_XS {
    static constexpr const char* name = "iq4_xs";
    static constexpr BlockShape shape = {256, 4, 32, false, 128, true, &iq4_levels};
};

}  // namespace

}  // namespace ockham

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/block_tiles.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

void iq4_xs_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    walk_blocks<Nested<IQ4_XS>>(matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#ifdef OCKHAM_TILES

namespace ockham::amx {

void iq4_xs_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    block_tile<IQ4_XS>(avx512::iq4_xs_tile, matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::amx

#endif

#else

#include "kinds/block_kind.h"

namespace ockham {

OCKHAM_DECLARE_TILES(TileFunction iq4_xs_tile);

namespace {

OCKHAM_BLOCK_KIND(IQ4_XS, iq4_xs_tile);

}  // namespace

}  // namespace ockham

#endif
