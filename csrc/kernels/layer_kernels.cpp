#include "kernels/layer_kernels.h"

namespace ockham {

const RowKernels& row_kernels(Isa isa) {
#if defined(__x86_64__)
    if (bits_of(isa) == Isa::avx512) return avx512::row_kernels;
    if (isa == Isa::avx2) return avx2::row_kernels;
#endif
    (void)isa;
    return portable::row_kernels;
}

const AttentionKernels& attention_kernels(Isa isa) {
#if defined(__x86_64__)
    if (bits_of(isa) == Isa::avx512) return avx512::attention_kernels;
    if (isa == Isa::avx2) return avx2::attention_kernels;
#endif
    (void)isa;
    return portable::attention_kernels;
}

}  // namespace ockham
