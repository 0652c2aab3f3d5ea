// 4-bit codes under two levels of scales: w = (code - 8) * s * scale. See two_level.h.
#include "kernels/linear.h"
#include "kinds/two_level.h"

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/two_level_kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

struct Int4dq {
    static constexpr Levels levels = {8, 8};
    OCKHAM_INLINE void unit(const uint8_t* from, Codes& low, Codes& high) { codes(from, low, high); }
};

void int4dq_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
                 int64_t y_stride, const float* bias) {
    using Format = TwoLevel<Int4dq>;
    walk<Format>(matrix, input, area, y, y_stride, bias, Format::span_steps);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include "isa/each.h"
#include "kinds/two_level_kind.h"

namespace ockham {

OCKHAM_DECLARE(TileFunction int4dq_tile);

namespace {

struct Int4dq {
    static constexpr const char* name = "int4dq";
    static constexpr Levels levels = {8, 8};
    static int level(int code) { return code - levels.zero; }
};

const LinearKind kind = TwoLevelKind<Int4dq>::kind(OCKHAM_EACH_ISA(int4dq_tile));
const AddedKind added{kind};

}  // namespace

}  // namespace ockham

#endif
