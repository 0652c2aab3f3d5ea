// Keys and values between groups of 16 tokens, once for all instruction sets; included by
// csrc/isa/layer_*.cpp. The loops over a group's 16 lanes are plain, for the compiler to make vectors
// of: what is copied moves by whole rows of lanes.
#pragma once

#include <cstring>

#include "kernels/layer_kernels.h"

namespace ockham {
namespace OCKHAM_ISA_NAMESPACE {

// (first, second) rotated by one angle in each of 16 lanes.
static inline void turn_lanes(float* first, float* second, float cosine, float sine) {
    for (int64_t lane = 0; lane < group_keys; ++lane) {
        const float a = first[lane], b = second[lane];
        first[lane] = a * cosine - b * sine;
        second[lane] = b * cosine + a * sine;
    }
}

static void turn_fp32(const void* source, void* target, GroupRun run, const float* cosines,
                      const float* sines, int64_t half) {
    const float* from = static_cast<const float*>(source);
    float* to = static_cast<float*>(target) + run.to;
    const size_t bytes = static_cast<size_t>(run.count) * sizeof(float);
    for (int64_t i = 0; i < half; ++i) {
        float first[group_keys], second[group_keys];
        std::memcpy(first, from + i * group_keys, sizeof first);
        std::memcpy(second, from + (i + half) * group_keys, sizeof second);
        turn_lanes(first, second, cosines[i], sines[i]);
        std::memcpy(to + i * group_keys, first + run.from, bytes);
        std::memcpy(to + (i + half) * group_keys, second + run.from, bytes);
    }
    for (int64_t i = 2 * half; i < run.width; ++i)
        std::memcpy(to + i * group_keys, from + i * group_keys + run.from, bytes);
}

static void copy_values_fp32(const void* source, void* target, GroupRun run) {
    std::memcpy(static_cast<float*>(target) + run.to * run.width,
                static_cast<const float*>(source) + run.from * run.width,
                static_cast<size_t>(run.count * run.width) * sizeof(float));
}

static inline uint32_t rounded_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

// A row of a bf16 key group: of 16 tokens two neighbouring elements each, the first in the low half.
static inline void widen_row(const uint32_t* row, float* low, float* high) {
    for (int64_t lane = 0; lane < group_keys; ++lane) {
        const uint32_t below = row[lane] << 16, above = row[lane] & 0xFFFF0000u;
        std::memcpy(low + lane, &below, sizeof below);
        std::memcpy(high + lane, &above, sizeof above);
    }
}

static inline void round_row(const float* low, const float* high, uint32_t* row) {
    for (int64_t lane = 0; lane < group_keys; ++lane)
        row[lane] = rounded_bf16(low[lane]) | rounded_bf16(high[lane]) << 16;
}

// Where the pairs (i, i + half) do not stand at the same place of their rows.
static void turn_bf16_one_by_one(const uint16_t* from, uint16_t* to, GroupRun run,
                                 const float* cosines, const float* sines, int64_t half) {
    const auto place = [](int64_t lane, int64_t element) {
        return (element / 2 * group_keys + lane) * 2 + element % 2;
    };
    const auto value = [&](int64_t lane, int64_t element) {
        const uint32_t bits = static_cast<uint32_t>(from[place(lane, element)]) << 16;
        float wide;
        std::memcpy(&wide, &bits, sizeof wide);
        return wide;
    };
    for (int64_t n = 0; n < run.count; ++n) {
        const int64_t lane = run.from + n, own = run.to + n;
        for (int64_t i = 0; i < half; ++i) {
            const float a = value(lane, i), b = value(lane, i + half);
            to[place(own, i)] = static_cast<uint16_t>(rounded_bf16(a * cosines[i] - b * sines[i]));
            to[place(own, i + half)] =
                static_cast<uint16_t>(rounded_bf16(b * cosines[i] + a * sines[i]));
        }
        for (int64_t i = 2 * half; i < run.width; ++i) to[place(own, i)] = from[place(lane, i)];
    }
}

static void turn_bf16(const void* source, void* target, GroupRun run, const float* cosines,
                      const float* sines, int64_t half) {
    if (half % 2 != 0) {
        turn_bf16_one_by_one(static_cast<const uint16_t*>(source), static_cast<uint16_t*>(target),
                             run, cosines, sines, half);
        return;
    }
    const uint32_t* from = static_cast<const uint32_t*>(source);
    uint32_t* to = static_cast<uint32_t*>(target) + run.to;
    const size_t bytes = static_cast<size_t>(run.count) * sizeof(uint32_t);
    for (int64_t row = 0; row < half / 2; ++row) {
        const int64_t other = row + half / 2;
        float low[group_keys], high[group_keys], other_low[group_keys], other_high[group_keys];
        widen_row(from + row * group_keys, low, high);
        widen_row(from + other * group_keys, other_low, other_high);
        turn_lanes(low, other_low, cosines[2 * row], sines[2 * row]);
        turn_lanes(high, other_high, cosines[2 * row + 1], sines[2 * row + 1]);
        uint32_t rounded[group_keys];
        round_row(low, high, rounded);
        std::memcpy(to + row * group_keys, rounded + run.from, bytes);
        round_row(other_low, other_high, rounded);
        std::memcpy(to + other * group_keys, rounded + run.from, bytes);
    }
    for (int64_t row = half; row < run.width / 2; ++row)
        std::memcpy(to + row * group_keys, from + row * group_keys + run.from, bytes);
}

static void copy_values_bf16(const void* source, void* target, GroupRun run) {
    // A row holds one element after the other of two tokens, the even lane's in the low half.
    const uint32_t* from = static_cast<const uint32_t*>(source);
    uint32_t* to = static_cast<uint32_t*>(target);
    for (int64_t n = 0; n < run.count;) {
        const int64_t lane = run.from + n, own = run.to + n;
        uint32_t* row = to + own / 2 * run.width;
        const uint32_t* first = from + lane / 2 * run.width;
        const int shift = lane % 2 != 0 ? 16 : 0;
        if (own % 2 == 0 && n + 1 < run.count) {  // two tokens that fill a row
            const uint32_t* second = from + (lane + 1) / 2 * run.width;
            const int next = (lane + 1) % 2 != 0 ? 16 : 0;
            for (int64_t i = 0; i < run.width; ++i)
                row[i] = (first[i] >> shift & 0xFFFFu) | (second[i] >> next) << 16;
            n += 2;
            continue;
        }
        const int place = own % 2 != 0 ? 16 : 0;
        const uint32_t kept = own % 2 != 0 ? 0x0000FFFFu : 0xFFFF0000u;
        for (int64_t i = 0; i < run.width; ++i)
            row[i] = (row[i] & kept) | (first[i] >> shift & 0xFFFFu) << place;
        ++n;
    }
}

}  // namespace OCKHAM_ISA_NAMESPACE
}  // namespace ockham
