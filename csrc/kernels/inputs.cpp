#include "kernels/inputs.h"

#include "isa/each.h"

namespace ockham {

OCKHAM_DECLARE(PrepareFunction prepare_bf16);
OCKHAM_DECLARE(PrepareFunction prepare_quantised);
OCKHAM_DECLARE(PrepareFunction prepare_summed);
OCKHAM_DECLARE(PrepareFunction prepare_summed_by_8);
OCKHAM_DECLARE(PrepareFunction prepare_paired_by_16);
OCKHAM_DECLARE(PrepareFunction prepare_summed_by_16);

const InputKind bf16_input = {2, 0, OCKHAM_EACH_ISA(prepare_bf16)};
const InputKind quantised_input = {1, 1, OCKHAM_EACH_ISA(prepare_quantised)};
const InputKind summed_input = {1, 1, OCKHAM_EACH_ISA(prepare_summed)};
const InputKind summed_by_8_input = {1, 4, OCKHAM_EACH_ISA(prepare_summed_by_8)};
const InputKind paired_by_16_input = {1, 8, OCKHAM_EACH_ISA(prepare_paired_by_16)};
const InputKind summed_by_16_input = {1, 16, OCKHAM_EACH_ISA(prepare_summed_by_16)};

}  // namespace ockham
