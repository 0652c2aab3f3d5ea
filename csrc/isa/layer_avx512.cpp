#define OCKHAM_ISA_NAMESPACE avx512
#include "kernels/attention_kernels.h"
#include "kernels/row_kernels.h"
#include "kernels/low_rank_kernels.h"
