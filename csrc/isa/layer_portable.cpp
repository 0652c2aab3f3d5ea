#define OCKHAM_ISA_NAMESPACE portable
#include "kernels/attention_kernels.h"
#include "kernels/row_kernels.h"
#include "kernels/low_rank_kernels.h"
