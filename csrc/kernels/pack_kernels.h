// Quantising weights; included by csrc/isa/*.cpp after a simd_*.h and linear_kernels.h.
//
// No fused product and no order of lanes is left open here: what is packed is part of a model's
// content, so it has the same bits whichever machine packed it, with NumPy too (ockham/weights).
#pragma once

#include "kernels/kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

static void pack_int8(const float* rows, int64_t inputs, uint8_t* codes, uint16_t* scale) {
    const int64_t groups = (inputs + int8_group - 1) / int8_group;
    for (int64_t lane = 0; lane < panel_outputs; ++lane) {
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t begin = g * int8_group, rest = inputs - begin;
            alignas(64) float values[int8_group] = {};
            __builtin_memcpy(values, rows + lane * inputs + begin,
                             (rest < int8_group ? rest : int8_group) * sizeof(float));
            hadamard(values);
            float most = 0;
            for (const float value : values) {
                const float magnitude = __builtin_fabsf(value);
                most = magnitude > most ? magnitude : most;
            }
            const uint16_t half = to_half(most / 127.0f);
            const float wide = half_value(half);
            const F inverse = broadcast(wide == 0 ? 0.0f : 1.0f / wide);
            const I least = int_broadcast(-127), largest = int_broadcast(127);
            scale[g * panel_outputs + lane] = half;
            uint8_t* to = codes + (lane * groups + g) * int8_group;
            for (int64_t k = 0; k < int8_group; k += 16) {
                const I value = to_int(mul(load(values + k), inverse));
                alignas(64) int8_t part[16];
                store_int8(part, int_min(int_max(value, least), largest));
                for (int i = 0; i < 16; ++i) to[k + i] = static_cast<uint8_t>(part[i] + 128);
            }
        }
    }
}

// The scale of a group is -extreme / d for one of these d, where `extreme` is the weight of largest
// magnitude: d = 8 puts it exactly at code 0, less leaves room, more clips it.
static const float int4_divisors[] = {8.0f, 7.0f, 7.4f, 7.7f, 8.3f, 8.7f, 9.2f, 10.0f};

static void pack_int4(const float* rows, int64_t inputs, int64_t group, uint8_t* codes,
                      uint16_t* scale) {
    const I least = int_broadcast(-8), most = int_broadcast(7);
    for (int64_t lane = 0; lane < panel_outputs; ++lane) {
        for (int64_t begin = 0; begin < inputs; begin += group) {
            const float* values = rows + lane * inputs + begin;
            float extreme = 0;
            for (int64_t k = 0; k < group; ++k)
                if (__builtin_fabsf(values[k]) > __builtin_fabsf(extreme)) extreme = values[k];
            uint16_t best = 0;
            float best_error = __builtin_inff();
            for (const float divisor : int4_divisors) {
                const uint16_t half = to_half(extreme / -divisor);
                const float wide = half_value(half);
                const F inverse = broadcast(wide == 0 ? 0.0f : 1.0f / wide);
                const F minus = broadcast(-wide);
                F errors = zero();
                for (int64_t k = 0; k < group; k += 16) {
                    const F value = load(values + k);
                    const I code = int_min(int_max(to_int(mul(value, inverse)), least), most);
                    const F error = add(value, mul(to_float(code), minus));
                    errors = add(errors, mul(error, error));
                }
                alignas(64) float lanes[16];
                store(lanes, errors);
                for (int half_lanes = 8; half_lanes; half_lanes /= 2)
                    for (int i = 0; i < half_lanes; ++i) lanes[i] += lanes[i + half_lanes];
                if (lanes[0] < best_error) {
                    best_error = lanes[0];
                    best = half;
                }
            }
            scale[begin / group * panel_outputs + lane] = best;
            const float wide = half_value(best);
            const F inverse = broadcast(wide == 0 ? 0.0f : 1.0f / wide);
            uint8_t* to = codes + (lane * inputs + begin) / 2;
            for (int64_t k = 0; k < group; k += 16, to += 8) {
                alignas(64) int8_t code[16];
                store_int8(code, int_min(int_max(to_int(mul(load(values + k), inverse)), least), most));
                for (int i = 0; i < 4; ++i) {
                    to[i] = static_cast<uint8_t>((code[i] + 8) | (code[4 + i] + 8) << 4);
                    to[4 + i] = static_cast<uint8_t>((code[8 + i] + 8) | (code[12 + i] + 8) << 4);
                }
            }
        }
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
