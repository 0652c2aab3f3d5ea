// Blocks of 32 inputs in 4 bits, one of 16 levels: d * level. See blocks.h.
#include "kernels/linear.h"
#include "kinds/blocks.h"

namespace ockham {

namespace {

struct IQ4_NL {
    static constexpr const char* name = "iq4_nl";
    static constexpr BlockShape shape = {32, 4, 0, false, 128, false, &iq4_levels};
};

}  // namespace

}  // namespace ockham

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/block_tiles.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

void iq4_nl_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    walk_blocks<Flat<IQ4_NL>>(matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#ifdef OCKHAM_TILES

namespace ockham::amx {

void iq4_nl_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    block_tile<IQ4_NL>(avx512::iq4_nl_tile, matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::amx

#endif

#else

#include "kinds/block_kind.h"

namespace ockham {

OCKHAM_DECLARE_TILES(TileFunction iq4_nl_tile);

namespace {

OCKHAM_BLOCK_KIND(IQ4_NL, iq4_nl_tile);

}  // namespace

}  // namespace ockham

#endif
