// The forms of inputs.h; included by csrc/isa/*.cpp.
#pragma once

#include "kernels/hadamard_kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

void prepare_bf16(const PreparedInput& input, int64_t row, const float* x) {
    const int64_t count = input.form.inputs;
    uint16_t* to = reinterpret_cast<uint16_t*>(input.values + row * input.form.row_bytes());
    int64_t k = 0;
    for (; k + 16 <= count; k += 16) store_bf16(to + k, load(x + k));
    if (k < count) store_bf16(to + k, load(x + k, count - k));
    __builtin_memset(to + count, 0, input.form.row_bytes() - count * 2);
}

// Quantises `count` floats, a multiple of 16, with one scale: see inputs.h.
static void quantise(const float* x, int64_t count, int8_t* values, float* scale, int32_t* offset,
                     int32_t zero) {
    I most_bits = int_broadcast(0);
    for (int64_t k = 0; k < count; k += 16) most_bits = int_max(most_bits, abs_bits(load(x + k)));
    const int32_t bits = lanes_max(most_bits);
    float most;
    __builtin_memcpy(&most, &bits, 4);
    const bool finite = bits < 0x7f800000;
    if (!finite || most < 0x1p-100f) {
        __builtin_memset(values, 0, count);
        *scale = finite ? 0.0f : __builtin_nanf("");
        *offset = 0;
        return;
    }
    const F inverse = broadcast(127.0f / most);
    I total = int_broadcast(0);
    for (int64_t k = 0; k < count; k += 16) {
        const I value = to_int(mul(load(x + k), inverse));
        total = int_add(total, value);
        store_int8(values + k, value);
    }
    *scale = most / 127.0f;
    *offset = -zero * lanes_sum(total);
}

void prepare_quantised(const PreparedInput& input, int64_t row, const float* x) {
    const InputForm& form = input.form;
    const int64_t count = form.inputs, group = form.group, groups = form.groups();
    int8_t* values = reinterpret_cast<int8_t*>(input.values + row * form.row_bytes());
    for (int64_t g = 0; g < groups; ++g, x += group) {
        const int64_t rest = count - g * group;
        const float* from = x;
        alignas(64) float own[hadamard_values];
        if (form.rotated || rest < group) {  // only groups of hadamard_values may be incomplete
            const int64_t own_count = rest < group ? rest : group;
            __builtin_memcpy(own, x, own_count * sizeof(float));
            for (int64_t i = own_count; i < group; ++i) own[i] = 0;
            if (form.rotated) hadamard(own);
            from = own;
        }
        quantise(from, group, values + g * group, input.scales + row * groups + g,
                 input.offsets + row * groups + g, form.zero);
    }
}

static int32_t sum_of(const int8_t* values, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += values[i];
    return sum;
}

// Quantises each group, and calls summed(values, sum, scale, offsets) for it.
template <class Summed>
static void prepare_groups(const PreparedInput& input, int64_t row, const float* x, Summed summed) {
    const int64_t group = input.form.group, groups = input.form.groups();
    const int64_t words = input.form.kind->offset_words;
    int8_t* values = reinterpret_cast<int8_t*>(input.values + row * input.form.row_bytes());
    float* scale = input.scales + row * groups;
    int32_t* offset = input.offsets + row * groups * words;
    for (int64_t g = 0; g < groups; ++g, x += group, values += group, ++scale, offset += words) {
        int32_t sum;
        quantise(x, group, values, scale, &sum, -1);
        summed(values, sum, *scale, offset);
    }
}

void prepare_summed(const PreparedInput& input, int64_t row, const float* x) {
    prepare_groups(input, row, x, [](const int8_t*, int32_t sum, float scale, int32_t* offset) {
        const float total = static_cast<float>(sum) * scale;
        __builtin_memcpy(offset, &total, 4);
    });
}

// The sums of groups of COUNT, as int16.
template <int COUNT>
static void prepare_pairs(const PreparedInput& input, int64_t row, const float* x) {
    prepare_groups(input, row, x, [](const int8_t* values, int32_t, float, int32_t* offset) {
        int16_t sums[256 / COUNT];
        for (int i = 0; i < 256 / COUNT; ++i)
            sums[i] = static_cast<int16_t>(sum_of(values + COUNT * i, COUNT));
        __builtin_memcpy(offset, sums, sizeof sums);
    });
}

void prepare_summed_by_8(const PreparedInput& input, int64_t row, const float* x) {
    prepare_pairs<32>(input, row, x);
}

void prepare_paired_by_16(const PreparedInput& input, int64_t row, const float* x) {
    prepare_pairs<16>(input, row, x);
}

void prepare_summed_by_16(const PreparedInput& input, int64_t row, const float* x) {
    constexpr int64_t count = 16;
    const int32_t zero = input.form.zero;
    prepare_groups(input, row, x, [zero](const int8_t* values, int32_t, float, int32_t* offset) {
        for (int i = 0; i < 16; ++i) offset[i] = -zero * sum_of(values + count * i, count);
    });
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
