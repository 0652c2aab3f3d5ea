#define OCKHAM_ISA_NAMESPACE avx2
#include "../attention_kernels.h"
#include "../row_kernels.h"
