// Probes of the arithmetic rates and of reading memory; included by csrc/isa/*.cpp after
// linear_kernels.h.
#pragma once

#include "kernels/kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// Makes the compiler believe that `*value` changed, so that no product is taken out of a loop. (To
// say so of all memory would force the sums out of their registers.)
OCKHAM_INLINE void forget(float* value) { asm volatile("" : "+m"(*value)); }

// A block of the products without its memory: as many sums as the registers hold, from different
// values, each row's input read anew (or the compiler would find them one and the same).
static double probe_fp32(int64_t rounds, float* sink) {
    constexpr int rows = Fp32Block::rows, panels = Fp32Block::panels(rows);
    F sum[rows * panels], weights[panels];
    OCKHAM_UNROLL
    for (int i = 0; i < rows * panels; ++i) sum[i] = load(sink + 16 + i);
    OCKHAM_UNROLL
    for (int p = 0; p < panels; ++p) weights[p] = load(sink + 16 * p);
    for (int64_t round = 0; round < rounds; ++round)
        OCKHAM_UNROLL
        for (int r = 0; r < rows; ++r) {
            forget(sink + r);
            const F x = broadcast(sink[r]);
            OCKHAM_UNROLL
            for (int p = 0; p < panels; ++p)
                sum[r * panels + p] = fma(x, weights[p], sum[r * panels + p]);
        }
    OCKHAM_UNROLL
    for (int i = 0; i < rows * panels; ++i) store(sink, add(load(sink), sum[i]));
    return 2.0 * 16 * rows * panels * rounds;
}

[[maybe_unused]] static double probe_bf16(int64_t rounds, float* sink) {
    constexpr int rows = Bf16Block::rows, panels = Bf16Block::panels(rows);
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(sink);
    F sum[rows * panels];
    PairWeights weights[panels];
    OCKHAM_UNROLL
    for (int i = 0; i < rows * panels; ++i) sum[i] = load(sink + 16 + i);
    OCKHAM_UNROLL
    for (int p = 0; p < panels; ++p) weights[p] = pair_weights(bytes + 64 * p);
    for (int64_t round = 0; round < rounds; ++round)
        OCKHAM_UNROLL
        for (int r = 0; r < rows; ++r) {
            forget(sink + r);
            const Pair x = pair(bytes + 4 * r);
            OCKHAM_UNROLL
            for (int p = 0; p < panels; ++p)
                sum[r * panels + p] = dot(sum[r * panels + p], weights[p], x);
        }
    OCKHAM_UNROLL
    for (int i = 0; i < rows * panels; ++i) store(sink, add(load(sink), sum[i]));
    return 4.0 * 16 * rows * panels * rounds;
}

[[maybe_unused]] static double probe_int8(int64_t rounds, float* sink) {
    // One panel: with more, GCC 12 copies the sums about, and some out of the registers.
    constexpr int rows = QuadBlock::rows, panels = 1;
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(sink);
    I sum[rows * panels];
    QuadWeights weights[panels];
    OCKHAM_UNROLL
    for (int i = 0; i < rows * panels; ++i) sum[i] = as_int(load(sink + 16 + i));
    OCKHAM_UNROLL
    for (int p = 0; p < panels; ++p) weights[p] = quad_weights(bytes + 64 * p);
    for (int64_t round = 0; round < rounds; ++round)
        OCKHAM_UNROLL
        for (int r = 0; r < rows; ++r) {
            forget(sink + r);
            const Quad x = quad(bytes + 4 * r);
            OCKHAM_UNROLL
            for (int p = 0; p < panels; ++p)
                sum[r * panels + p] = dot_quad(sum[r * panels + p], weights[p], x);
        }
    OCKHAM_UNROLL
    for (int i = 0; i < rows * panels; ++i) store(sink, add(load(sink), to_float(sum[i])));
    return 8.0 * 16 * rows * panels * rounds;
}

static int32_t probe_read(const void* from, int64_t bytes) {
    const uint8_t* at = static_cast<const uint8_t*>(from);
    I most[8];
    OCKHAM_UNROLL
    for (int i = 0; i < 8; ++i) most[i] = int_broadcast(0);
    for (int64_t offset = 0; offset < bytes; offset += 512) {
        OCKHAM_UNROLL
        for (int i = 0; i < 8; ++i) {
            prefetch(at + offset + 64 * i + 4096);
            const float* line = reinterpret_cast<const float*>(at + offset + 64 * i);
            most[i] = int_max(most[i], as_int(load(line)));
        }
    }
    for (int i = 1; i < 8; ++i) most[0] = int_max(most[0], most[i]);
    return lanes_max(most[0]);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
