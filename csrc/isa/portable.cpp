// The kernels compiled for portable: see isa.h for what may stand here.
#define OCKHAM_ISA_NAMESPACE portable

#include "kernels/simd_portable.h"

#include "kernels/linear_kernels.h"
#include "kernels/input_kernels.h"
#include "kernels/machine_kernels.h"

namespace ockham::portable {

const LimitKernels limit_kernels = {probe_fp32, probe_bf16, probe_int8, probe_read};

}  // namespace ockham::portable
