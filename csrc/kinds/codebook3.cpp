// 8 levels of each row's own. See codebook.h.
#include "kernels/linear.h"
#include "kinds/codebook.h"

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/codebook_kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

void codebook3_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
                    int64_t y_stride, const float* bias) {
    using Format = CodebookProduct<3>;
    walk<Format>(matrix, input, area, y, y_stride, bias, Format::span_steps);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include "isa/each.h"
#include "kinds/codebook_kind.h"

namespace ockham {

OCKHAM_DECLARE(TileFunction codebook3_tile);

namespace {

struct Codebook3 {
    static constexpr const char* name = "codebook3";
    static constexpr int bits = 3;
};

TileFunction* const tiles[] = OCKHAM_EACH_ISA(codebook3_tile);
const LinearKind kind = CodebookKind<Codebook3>::kind(tiles);
const AddedKind added{kind};

}  // namespace

}  // namespace ockham

#endif
