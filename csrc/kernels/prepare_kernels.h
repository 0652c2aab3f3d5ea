// Rows of inputs in the form that products read: rotated, quantised, rounded. Included by csrc/isa/*.cpp
// after a simd_*.h and linear_kernels.h.
#pragma once

#include "kernels/kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// Multiplies a group of 64 floats by the orthonormal Hadamard matrix, whose entry (i, k) is 1/8 with the
// sign of -1 to the number of bits that i and k share; it is its own inverse. Stage after stage, from
// the lowest bit to the highest, a pair (a, b) whose places differ in that bit becomes (a + b, a - b).
static void hadamard(float* values) {
    F part[4];
    OCKHAM_UNROLL
    for (int i = 0; i < 4; ++i)
        part[i] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(load(values + 16 * i)))));
    const F a = add(part[0], part[1]), b = sub(part[0], part[1]);
    const F c = add(part[2], part[3]), d = sub(part[2], part[3]);
    const F eighth = broadcast(0.125f);
    store(values, mul(add(a, c), eighth));
    store(values + 16, mul(add(b, d), eighth));
    store(values + 32, mul(sub(a, c), eighth));
    store(values + 48, mul(sub(b, d), eighth));
}

// Quantises `count` floats, a multiple of 16, with one scale: see Kind::int8 in linear.h.
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

static void prepare_row(const PreparedInput& input, int64_t row, const float* x) {
    const int64_t count = input.form.inputs, row_bytes = input.form.row_bytes();
    uint8_t* values = input.values + row * row_bytes;
    switch (input.form.kind) {
        case Kind::fp32:
            __builtin_memcpy(values, x, count * 4);
            break;
        case Kind::bf16: {
            uint16_t* to = reinterpret_cast<uint16_t*>(values);
            int64_t k = 0;
            for (; k + 16 <= count; k += 16) store_bf16(to + k, load(x + k));
            if (k < count) store_bf16(to + k, load(x + k, count - k));
            if (count & 1) to[count] = 0;  // the second half of the last pair
            break;
        }
        case Kind::int8:
        case Kind::int4: {
            const int64_t group = input.form.group, groups = input.form.groups();
            const int32_t zero = input.form.kind == Kind::int8 ? 128 : 8;
            for (int64_t g = 0; g < groups; ++g, x += group) {
                const int64_t rest = count - g * group;
                const float* from = x;
                alignas(64) float own[int8_group];
                if (input.form.rotated || rest < group) {  // int8
                    const int64_t own_count = rest < group ? rest : group;
                    __builtin_memcpy(own, x, own_count * sizeof(float));
                    for (int64_t i = own_count; i < group; ++i) own[i] = 0;
                    if (input.form.rotated) hadamard(own);
                    from = own;
                }
                quantise(from, group, reinterpret_cast<int8_t*>(values) + g * group,
                         input.scales + row * groups + g, input.offsets + row * groups + g, zero);
            }
            break;
        }
        default:
            prepare_block_row(input, row, x);
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
