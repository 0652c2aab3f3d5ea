#define OCKHAM_ISA_NAMESPACE avx512
#include "../attention_kernels.h"
#include "../row_kernels.h"
