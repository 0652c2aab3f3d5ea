#define OCKHAM_ISA_NAMESPACE portable
#include "../attention_kernels.h"
#include "../row_kernels.h"
