// The row kernels, once for all instruction sets; included by csrc/isa/layer_*.cpp.
#pragma once

#include "kernels/code_kernels.h"
#include "kernels/functions.h"
#include "kernels/layer_kernels.h"
#include "kernels/recurrence_kernels.h"
#include "kernels/turn_kernels.h"

namespace ockham {
namespace OCKHAM_ISA_NAMESPACE {

// Calls f(offset, load, store) for each vector of a row; the last may be short.
template <class F>
static inline void for_each_vector(int64_t length, F f) {
    int64_t i = 0;
    for (; i + lane_count <= length; i += lane_count)
        f(i, [](const float* p) { return load(p); }, [](float* p, Lanes a) { store(p, a); });
    if (i < length) {
        const int64_t rest = length - i;
        f(i, [rest](const float* p) { return load_some(p, rest); },
          [rest](float* p, Lanes a) { store_some(p, a, rest); });
    }
}

// The sum of add(values, sum of those before) over a row, in 64 lanes: lane i takes the elements i,
// i + 64, ...; then lanes by 16, then as the tree of lanes.h.
template <class Add>
static inline float sum_of_row(const float* x, int64_t length, Add add) {
    Lanes sums[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 4 * lane_count <= length; i += 4 * lane_count)
        for (int part = 0; part < 4; ++part)
            sums[part] = add(load(x + i + part * lane_count), sums[part]);
    for (int part = 0; i < length; ++part, i += lane_count) {
        const int64_t rest = length - i;
        sums[part] = add(rest < lane_count ? load_some(x + i, rest) : load(x + i), sums[part]);
    }
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

static inline float squares_of_row(const float* x, int64_t length) {
    return sum_of_row(x, length, [](Lanes values, Lanes sum) { return fma(values, values, sum); });
}

static void rms_norm(const float* x, const float* weight, float eps, int64_t length, float* y) {
    const float squares = squares_of_row(x, length);
    const Lanes inverse =
        broadcast(1.0f / __builtin_sqrtf(squares / static_cast<float>(length) + eps));
    for_each_vector(length, [&](int64_t j, auto from, auto to) {
        to(y + j, (from(x + j) * inverse) * from(weight + j));
    });
}

static void layer_norm(const float* x, const float* weight, const float* bias, float eps,
                       int64_t length, float* y) {
    const float total = sum_of_row(x, length, [](Lanes values, Lanes sum) { return sum + values; });
    const Lanes mean = broadcast(total / static_cast<float>(length));
    for_each_vector(length,
                    [&](int64_t j, auto from, auto to) { to(y + j, from(x + j) - mean); });
    const float squares = squares_of_row(y, length);
    const Lanes inverse =
        broadcast(1.0f / __builtin_sqrtf(squares / static_cast<float>(length) + eps));
    if (bias == nullptr) {
        for_each_vector(length, [&](int64_t j, auto from, auto to) {
            to(y + j, (from(y + j) * inverse) * from(weight + j));
        });
        return;
    }
    for_each_vector(length, [&](int64_t j, auto from, auto to) {
        to(y + j, (from(y + j) * inverse) * from(weight + j) + from(bias + j));
    });
}

static void add_scaled(float* x, const float* branch, float scale, int64_t length) {
    if (scale == 1.0f) {
        for_each_vector(length, [&](int64_t j, auto from, auto to) {
            to(x + j, from(x + j) + from(branch + j));
        });
        return;
    }
    const Lanes factor = broadcast(scale);
    for_each_vector(length, [&](int64_t j, auto from, auto to) {
        to(x + j, from(x + j) + from(branch + j) * factor);
    });
}

static void multiply(float* x, float factor, int64_t length) {
    const Lanes by = broadcast(factor);
    for_each_vector(length, [&](int64_t j, auto from, auto to) { to(x + j, from(x + j) * by); });
}

template <Activation ACTIVATION>
static inline __attribute__((always_inline)) Lanes activation_of(Lanes x) {
    if constexpr (ACTIVATION == Activation::silu) return silu(x);
    if constexpr (ACTIVATION == Activation::gelu_tanh) return gelu_tanh(x);
    if constexpr (ACTIVATION == Activation::gelu) return gelu(x);
    if constexpr (ACTIVATION == Activation::clamped_swiglu) return clamped_swish(x);
    if constexpr (ACTIVATION == Activation::relu_squared) return relu(x) * relu(x);
    return relu(x);
}

template <Activation ACTIVATION>
static void gated(const float* gate, const float* up, int64_t length, float* y) {
    for_each_vector(length, [&](int64_t j, auto from, auto to) {
        Lanes factor = from(up + j);
        if constexpr (ACTIVATION == Activation::clamped_swiglu) factor = clamped_up(factor);
        to(y + j, activation_of<ACTIVATION>(from(gate + j)) * factor);
    });
}

template <Activation ACTIVATION>
static void activated(const float* x, int64_t length, float* y) {
    for_each_vector(length, [&](int64_t j, auto from, auto to) {
        to(y + j, activation_of<ACTIVATION>(from(x + j)));
    });
}

static void rotate(float* head, const float* cosines, const float* sines, int64_t half) {
    for_each_vector(half, [&](int64_t j, auto from, auto to) {
        const Lanes first = from(head + j), second = from(head + half + j);
        const Lanes c = from(cosines + j), s = from(sines + j);
        to(head + j, first * c - second * s);
        to(head + half + j, second * c + first * s);
    });
}

static void softcap(float* x, float cap, int64_t length) {
    const Lanes by = broadcast(cap);
    for_each_vector(length, [&](int64_t j, auto from, auto to) {
        to(x + j, hyperbolic_tangent(from(x + j) / by) * by);
    });
}

static void softmax(float* x, int64_t length) {
    float peak = x[0];
    for (int64_t i = 1; i < length; ++i) peak = x[i] > peak ? x[i] : peak;
    const Lanes most = broadcast(peak);
    Lanes sums = zero();
    int64_t i = 0;
    for (; i < length; i += lane_count) {
        const int64_t rest = length - i;
        if (rest >= lane_count) {
            const Lanes e = exponential_of_negative(load(x + i) - most);
            store(x + i, e);
            sums = sums + e;
        } else {
            const Lanes e = exponential_of_negative(load_some(x + i, rest) - most);
            store_some(x + i, e, rest);
            sums = sums + select(lane_range(0, static_cast<int>(rest)), e, zero());
        }
    }
    const Lanes total = broadcast(sum(sums));
    for_each_vector(length, [&](int64_t j, auto from, auto to) { to(x + j, from(x + j) / total); });
}

static void logistic_row(float* x, int64_t length) {
    for_each_vector(length, [&](int64_t j, auto from, auto to) { to(x + j, logistic(from(x + j))); });
}

static void exponential_sums(const float* x, float peak, int64_t length, float* sums) {
    const Lanes most = broadcast(peak);
    // -infinity times 0 is no number: what underflows anyway is taken as the least that does.
    const Lanes least = broadcast(-88.0f);
    Lanes parts[4] = {zero(), zero(), zero(), zero()}, moments[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 4 * lane_count <= length; i += 4 * lane_count) {
        for (int part = 0; part < 4; ++part) {
            const Lanes below = load(x + i + part * lane_count) - most;
            const Lanes off = select(less(below, least), least, below);
            const Lanes e = exponential_of_negative(off);
            parts[part] = parts[part] + e;
            moments[part] = moments[part] + off * e;
        }
    }
    for (int part = 0; i < length; ++part, i += lane_count) {
        const int rest = static_cast<int>(length - i < lane_count ? length - i : lane_count);
        const Lanes below = load_some(x + i, rest) - most;
        const Lanes off = select(less(below, least), least, below);
        const Lanes e = select(lane_range(0, rest), exponential_of_negative(off), zero());
        parts[part] = parts[part] + e;
        moments[part] = moments[part] + off * e;
    }
    sums[0] = sum((parts[0] + parts[1]) + (parts[2] + parts[3]));
    sums[1] = sum((moments[0] + moments[1]) + (moments[2] + moments[3]));
}

static int64_t argmax(const float* x, int64_t length) {
    // Chunks are reduced without a branch on where the largest stands; only the first chunk that holds
    // it is then searched.
    constexpr int64_t chunk = 1024, step = 4 * lane_count;
    const float least = -__builtin_inff();
    float peak = least;
    int64_t where = 0;
    bool finite = true;
    for (int64_t begin = 0; begin < length; begin += chunk) {
        const int64_t end = length - begin < chunk ? length : begin + chunk;
        Lanes most[4] = {broadcast(least), broadcast(least), broadcast(least), broadcast(least)};
        Lanes check[4] = {zero(), zero(), zero(), zero()};  // 0, or NaN for NaN and infinity
        int64_t i = begin;
        for (; i + step <= end; i += step) {
            for (int part = 0; part < 4; ++part) {
                const Lanes values = load(x + i + part * lane_count);
                most[part] = max(values, most[part]);
                check[part] = check[part] + (values - values);
            }
        }
        float highest = largest(max(max(most[0], most[1]), max(most[2], most[3])));
        finite = finite && sum((check[0] + check[1]) + (check[2] + check[3])) == 0.0f;
        for (; i < end; ++i) {
            highest = x[i] > highest ? x[i] : highest;
            finite = finite && x[i] - x[i] == 0.0f;
        }
        if (highest > peak) {
            peak = highest;
            where = begin;
        }
    }
    if (!finite)
        for (int64_t j = 0; j < length; ++j)
            if (x[j] != x[j]) return j;
    for (int64_t j = where; j < length; ++j)
        if (x[j] == peak) return j;
    return 0;
}

static void to_bf16(const float* x, int64_t length, uint16_t* y) {
    for (int64_t i = 0; i < length; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        const uint32_t rounded = bits + 0x7FFF + ((bits >> 16) & 1);
        const bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
        y[i] = static_cast<uint16_t>((nan ? bits | 0x400000 : rounded) >> 16);
    }
}

static void philox(const uint32_t key[2], uint32_t first_block, uint32_t counter1,
                   uint32_t counter2, uint32_t counter3, uint32_t* words) {
    // Each word in a 64-bit lane, where its product fits: nothing is packed between rounds.
    constexpr int count = 16;
    uint64_t c0[count], c1[count], c2[count], c3[count];
    for (int i = 0; i < count; ++i) {
        c0[i] = static_cast<uint32_t>(first_block + static_cast<uint32_t>(i));
        c1[i] = counter1;
        c2[i] = counter2;
        c3[i] = counter3;
    }
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; ++round) {
        for (int i = 0; i < count; ++i) {
            const uint64_t product0 = c0[i] * 0xD2511F53u, product1 = c2[i] * 0xCD9E8D57u;
            c0[i] = (product1 >> 32) ^ c1[i] ^ k0;
            c1[i] = product1 & 0xFFFFFFFFu;
            c2[i] = (product0 >> 32) ^ c3[i] ^ k1;
            c3[i] = product0 & 0xFFFFFFFFu;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < count; ++i) {
        words[4 * i] = static_cast<uint32_t>(c0[i]);
        words[4 * i + 1] = static_cast<uint32_t>(c1[i]);
        words[4 * i + 2] = static_cast<uint32_t>(c2[i]);
        words[4 * i + 3] = static_cast<uint32_t>(c3[i]);
    }
}

static void exponential_row(const float* x, int64_t length, float* y) {
    for_each_vector(length, [&](int64_t j, auto from, auto to) {
        to(y + j, exponential(from(x + j)));
    });
}

static void hyperbolic_tangent_row(const float* x, int64_t length, float* y) {
    for_each_vector(length, [&](int64_t j, auto from, auto to) {
        to(y + j, hyperbolic_tangent(from(x + j)));
    });
}

const RowKernels row_kernels = {
    rms_norm,
    layer_norm,
    add_scaled,
    multiply,
    {gated<Activation::silu>, gated<Activation::gelu_tanh>, gated<Activation::gelu>,
     gated<Activation::relu>, gated<Activation::clamped_swiglu>, gated<Activation::relu_squared>},
    {activated<Activation::silu>, activated<Activation::gelu_tanh>, activated<Activation::gelu>,
     activated<Activation::relu>, activated<Activation::clamped_swiglu>,
     activated<Activation::relu_squared>},
    rotate,
    softcap,
    softmax,
    logistic_row,
    exponential_sums,
    argmax,
    to_bf16,
    to_int16,
    to_int8,
    to_int4,
    hadamard,
    philox,
    turn_fp32,
    turn_bf16,
    copy_values_fp32,
    copy_values_bf16,
    sum_rows,
    dots,
    exponential_row,
    hyperbolic_tangent_row,
};

}  // namespace OCKHAM_ISA_NAMESPACE
}  // namespace ockham
