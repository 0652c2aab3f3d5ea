// The kernels compiled for amx: see isa.h for what may stand here, and kernels/tiles.h for what they do.
#define OCKHAM_ISA_NAMESPACE amx

#include "kernels/simd_avx512.h"

#include "kernels/linear_kernels.h"
#include "kernels/machine_kernels.h"
#include "kernels/tile_kernels.h"

#include "kernels/pair_tile_kernels.h"

namespace ockham::amx {

const LimitKernels limit_kernels = {probe_fp32, probe_pair_tiles, probe_tiles, probe_read};

}  // namespace ockham::amx
