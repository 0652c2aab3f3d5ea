#include "kernels/pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/halves.h"
#include "kernels/kernels.h"
#include "kernels/linear.h"
#include "kernels/threads.h"

namespace ockham {

namespace {

template <class Unit>
void panel_of(const Unit* rows, Unit* panel, int64_t units) {
    // Blocks of a cache line a row: each line is read once.
    constexpr int64_t block = std::max<int64_t>(1, 64 / sizeof(Unit));
    for (int64_t begin = 0; begin < units; begin += block) {
        const int64_t end = std::min(units, begin + block);
        for (int64_t unit = begin; unit < end; ++unit)
            for (int64_t lane = 0; lane < panel_outputs; ++lane)
                panel[unit * panel_outputs + lane] = rows[lane * units + unit];
    }
}

template <class Unit>
void all_panels(ThreadPool& pool, uint8_t* weight, int64_t outputs, int64_t units) {
    const int64_t panel_units = units * panel_outputs;
    std::vector<std::vector<Unit>> copies(pool.size());
    for (auto& copy : copies) copy.resize(panel_units);
    pool.parallel(outputs / panel_outputs, [&](int64_t panel, int thread) {
        Unit* at = reinterpret_cast<Unit*>(weight) + panel * panel_units;
        std::memcpy(copies[thread].data(), at, sizeof(Unit) * panel_units);
        panel_of(copies[thread].data(), at, units);
    });
}

// Rounded to the nearest, ties to even, for magnitudes below 2^22.
inline float rounded(float value) { return (value + 12582912.0f) - 12582912.0f; }

inline float clamped(float value, float least, float most) {
    value = value < least ? least : value;
    return value > most ? most : value;
}

inline float inverse_of(float scale) { return scale == 0 ? 0.0f : 1.0f / scale; }

// The sum of squared errors of a group with this scale, in 16 lanes that are then added in halves.
float error_of(const float* weights, int64_t group, float scale, float middle) {
    const float inverse = inverse_of(scale);
    float lanes[16] = {};
    for (int64_t k = 0; k < group; k += 16)
        for (int i = 0; i < 16; ++i) {
            const float code = clamped(rounded(weights[k + i] * inverse), -middle, middle - 1);
            const float error = weights[k + i] - code * scale;
            lanes[i] += error * error;
        }
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

void search_group(const float* weights, int64_t group, float middle, const float* divisors,
                  int64_t divisor_count, uint8_t* codes, uint16_t* scale) {
    float extreme = 0;
    for (int64_t k = 0; k < group; ++k)
        if (__builtin_fabsf(weights[k]) > __builtin_fabsf(extreme)) extreme = weights[k];
    uint16_t best = 0;
    float best_error = __builtin_inff();
    for (int64_t i = 0; i < divisor_count; ++i) {
        const uint16_t half = to_half(extreme / -divisors[i]);
        const float error = error_of(weights, group, from_half(&half), middle);
        if (error < best_error) {
            best_error = error;
            best = half;
        }
    }
    *scale = best;
    const float inverse = inverse_of(from_half(&best));
    for (int64_t k = 0; k < group; ++k)
        codes[k] = static_cast<uint8_t>(
            static_cast<int>(clamped(rounded(weights[k] * inverse), -middle, middle - 1) + middle));
}

}  // namespace

void to_panels(ThreadPool& pool, uint8_t* weight, int64_t outputs, int64_t units, int unit_bytes) {
    switch (unit_bytes) {
        case 1:
            return all_panels<uint8_t>(pool, weight, outputs, units);
        case 2:
            return all_panels<uint16_t>(pool, weight, outputs, units);
        case 4:
            return all_panels<uint32_t>(pool, weight, outputs, units);
        case 8:
            return all_panels<uint64_t>(pool, weight, outputs, units);
    }
}

void search_codes(ThreadPool& pool, const float* weights, int64_t groups, int64_t group, int middle,
                  const float* divisors, int64_t divisor_count, uint8_t* codes, uint16_t* scale) {
    constexpr int64_t at_once = 256;
    pool.parallel((groups + at_once - 1) / at_once, [&](int64_t task, int) {
        const int64_t end = std::min(groups, (task + 1) * at_once);
        for (int64_t g = task * at_once; g < end; ++g)
            search_group(weights + g * group, group, static_cast<float>(middle), divisors,
                         divisor_count, codes + g * group, scale + g);
    });
}

void pack_int8(ThreadPool& pool, Isa isa, const float* rows, int64_t panels, int64_t inputs,
               uint8_t* weight, uint16_t* scale) {
    const auto pack = pack_kernels(isa).int8;
    const int64_t groups = (inputs + int8_group - 1) / int8_group;
    const int64_t units = groups * int8_group / 4, panel_units = units * panel_outputs;
    std::vector<std::vector<uint32_t>> codes(pool.size(), std::vector<uint32_t>(panel_units));
    pool.parallel(panels, [&](int64_t panel, int thread) {
        uint32_t* own = codes[thread].data();
        pack(rows + panel * panel_outputs * inputs, inputs, reinterpret_cast<uint8_t*>(own),
             scale + panel * panel_outputs * groups);
        panel_of(own, reinterpret_cast<uint32_t*>(weight) + panel * panel_units, units);
    });
}

void pack_int4(ThreadPool& pool, Isa isa, const float* rows, int64_t panels, int64_t inputs,
               int64_t group, uint8_t* weight, uint16_t* scale) {
    const auto pack = pack_kernels(isa).int4;
    const int64_t units = inputs / 8, panel_units = units * panel_outputs;
    std::vector<std::vector<uint32_t>> codes(pool.size(), std::vector<uint32_t>(panel_units));
    pool.parallel(panels, [&](int64_t panel, int thread) {
        uint32_t* own = codes[thread].data();
        pack(rows + panel * panel_outputs * inputs, inputs, group, reinterpret_cast<uint8_t*>(own),
             scale + panel * panel_outputs * (inputs / group));
        panel_of(own, reinterpret_cast<uint32_t*>(weight) + panel * panel_units, units);
    });
}

}  // namespace ockham
