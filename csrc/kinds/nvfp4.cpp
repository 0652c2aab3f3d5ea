// Blocks of 16 inputs in 4 bits, floats of the form E2M1 (here doubled): d / divisor * level, d a float of
// 8 bits. See blocks.h.
#include "kernels/linear.h"
#include "kinds/blocks.h"

namespace ockham {

namespace {

struct NVFP4 {
    static constexpr const char* name = "nvfp4";
    static constexpr BlockShape shape = {16,    4,            0, false, 12,
                                         false, &e2m1_levels, BlockScale::small, 0, true};
};

}  // namespace

}  // namespace ockham

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/block_kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// (Tiles need steps of 32 inputs: where rows are many, amx does what avx512 does.)
void nvfp4_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
                int64_t y_stride, const float* bias) {
    walk_blocks<Flat<NVFP4>>(matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include "kinds/block_kind.h"

namespace ockham {

OCKHAM_DECLARE(TileFunction nvfp4_tile);

namespace {

OCKHAM_BLOCK_KIND_OF(NVFP4, OCKHAM_EACH_ISA(nvfp4_tile));

}  // namespace

}  // namespace ockham

#endif
