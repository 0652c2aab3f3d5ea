// Blocks of 256 inputs in 3 bits: d * s * (code - 4), the signed s of 16 inputs. See blocks.h.
#include "kernels/linear.h"
#include "kinds/blocks.h"

namespace ockham {

namespace {

struct Q3_K {
    static constexpr const char* name = "q3_k";
    static constexpr BlockShape shape = {256, 3, 16, false, 4, true};
};

}  // namespace

}  // namespace ockham

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/block_tiles.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

void q3_k_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    walk_blocks<Nested<Q3_K>>(matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#ifdef OCKHAM_TILES

namespace ockham::amx {

void q3_k_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    block_tile<Q3_K>(avx512::q3_k_tile, matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::amx

#endif

#else

#include "kinds/block_kind.h"

namespace ockham {

OCKHAM_DECLARE_TILES(TileFunction q3_k_tile);

namespace {

OCKHAM_BLOCK_KIND(Q3_K, q3_k_tile);

}  // namespace

}  // namespace ockham

#endif
