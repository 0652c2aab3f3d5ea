// Inputs as int8 by row and span: quantised_input of kernels/inputs.h, of which the last span may be
// shorter. For kinds whose numbers of inputs no span need divide.
#pragma once

#include "kernels/inputs.h"
#include "kernels/linear.h"

namespace ockham {

// Quantises a row. `offsets`: a word for each span, minus form.zero times the sum of its values.
template <Isa ISA>
void quantise_spans(const PreparedInput& input, int64_t row, const float* x, int32_t* offsets) {
    const InputForm& form = input.form;
    const int64_t whole = form.inputs / form.group, rest = form.inputs % form.group;
    const auto quantise = [&](int64_t first, int64_t count, int64_t group) {
        PreparedInput part;
        part.form = {&quantised_input, count, group, form.zero};
        part.values = input.values + row * form.row_bytes() + first * form.group;
        part.scales = input.scales + row * form.groups() + first;
        part.offsets = offsets + first;
        prepare_row(ISA, part, 0, x + first * form.group);
    };
    if (whole) quantise(0, whole * form.group, form.group);
    if (rest) quantise(whole, rest, rest);
}

// The list of a function template's instances for each instruction set, as OCKHAM_EACH_ISA has it.
#if defined(__x86_64__)
#define OCKHAM_EACH_ISA_OF(name) \
    { name<Isa::portable>, name<Isa::avx2>, name<Isa::avx512>, name<Isa::avx512> }
#else
#define OCKHAM_EACH_ISA_OF(name) \
    { name<Isa::portable> }
#endif

}  // namespace ockham
