// The kernels compiled for avx2: see isa.h for what may stand here.
#define OCKHAM_ISA_NAMESPACE avx2

#include "kernels/simd_avx2.h"

#include "kernels/linear_kernels.h"
#include "kernels/input_kernels.h"
#include "kernels/machine_kernels.h"

namespace ockham::avx2 {

const LimitKernels limit_kernels = {probe_fp32, probe_bf16, probe_int8, probe_read};

}  // namespace ockham::avx2
