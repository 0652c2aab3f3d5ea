// The rotation of weights and of inputs. Included after a simd_*.h and linear_kernels.h.
#pragma once

#include "kernels/linear.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

constexpr int64_t hadamard_values = 64;

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

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
