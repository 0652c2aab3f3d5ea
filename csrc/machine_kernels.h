// Probes of the arithmetic rates and of reading memory; included by csrc/isa/*.cpp after a simd_*.h.
#pragma once

#include "kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// Makes the compiler believe that memory changed, so that no product is taken out of a loop.
OCKHAM_INLINE void forget() { asm volatile("" ::: "memory"); }

// Enough independent sums to hide the latency of an operation, few enough for the registers.
constexpr int probe_sums = Fp32Block::rows * Fp32Block::panels;

static double probe_fp32(int64_t rounds, float* sink) {
    F sum[probe_sums];
    for (F& each : sum) each = broadcast(*sink);
    const F a = load(sink);
    for (int64_t round = 0; round < rounds; ++round) {
        forget();
        const F b = broadcast(*sink);
        for (F& each : sum) each = fma(a, b, each);
    }
    for (const F& each : sum) store(sink, add(load(sink), each));
    return 2.0 * 16 * probe_sums * rounds;
}

static double probe_bf16(int64_t rounds, float* sink) {
    constexpr int sums = Bf16Block::rows * Bf16Block::panels;
    F sum[sums];
    for (F& each : sum) each = broadcast(*sink);
    const PairWeights weights = pair_weights(reinterpret_cast<const uint8_t*>(sink));
    for (int64_t round = 0; round < rounds; ++round) {
        forget();
        const Pair x = pair(reinterpret_cast<const uint8_t*>(sink));
        for (F& each : sum) each = dot(each, weights, x);
    }
    for (const F& each : sum) store(sink, add(load(sink), each));
    return 4.0 * 16 * sums * rounds;
}

static double probe_int8(int64_t rounds, float* sink) {
    constexpr int sums = Int8Block::rows * Int8Block::panels;
    I sum[sums];
    for (I& each : sum) each = int_broadcast(0);
    const QuadWeights weights = quad_weights(reinterpret_cast<const uint8_t*>(sink));
    for (int64_t round = 0; round < rounds; ++round) {
        forget();
        const Quad x = quad(reinterpret_cast<const uint8_t*>(sink));
        for (I& each : sum) each = dot_quad(each, weights, x);
    }
    for (const I& each : sum) store(sink, add(load(sink), to_float(each)));
    return 8.0 * 16 * sums * rounds;
}

static uint64_t probe_read(const void* from, int64_t bytes) {
    const float* at = static_cast<const float*>(from);
    I sum[8];
    for (I& each : sum) each = int_broadcast(0);
    for (int64_t offset = 0; offset < bytes / 4; offset += 128) {
        prefetch(at + offset + 512);
        prefetch(at + offset + 528);
        for (int i = 0; i < 8; ++i) sum[i] = int_add(sum[i], as_int(load(at + offset + 16 * i)));
    }
    for (int i = 1; i < 8; ++i) sum[0] = int_add(sum[0], sum[i]);
    return static_cast<uint32_t>(lanes_sum(sum[0]));
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
