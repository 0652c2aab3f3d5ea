#include "kernels/pack.h"

#include <algorithm>

#include "kernels/halves.h"
#include "kernels/threads.h"
#include "kinds/kind.h"

namespace ockham {

namespace {

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

void pack_rows(ThreadPool& pool, const PackedMatrix& matrix, int64_t first, int64_t panels,
               const std::vector<const uint8_t*>& fields) {
    const std::vector<RowField> sizes = matrix.kind->fields(matrix);
    const RaggedPanels* const ragged = matrix.kind->ragged;
    // The caller's arrays: a view of them is const for those who multiply.
    const auto at = [&](const void* array, size_t bytes, int64_t panel) {
        return static_cast<uint8_t*>(const_cast<void*>(array)) +
               bytes / static_cast<size_t>(matrix.panels()) * static_cast<size_t>(panel);
    };
    using PackPanel = void (*)(const PackedMatrix&, const uint8_t* const*, PanelMemory);
    const auto each = [&](PackPanel pack) {
        pool.parallel(panels, [&](int64_t panel, int) {
            const uint8_t* rows[8];
            for (size_t i = 0; i < fields.size(); ++i)
                rows[i] = fields[i] + panel * panel_outputs * sizes[i].row_bytes;
            pack(matrix, rows,
                 {at(matrix.weight, ragged ? 0 : matrix.weight_bytes, first + panel),
                  at(matrix.scale, matrix.scale_bytes, first + panel),
                  at(matrix.zero, matrix.zero_bytes, first + panel)});
        });
    };
    if (ragged) {
        each(ragged->measure);
        ragged->place(matrix, first, panels);
    }
    each(matrix.kind->pack_panel);
}

void quantise_rows(ThreadPool& pool, Isa isa, const PackedMatrix& matrix, const float* rows, int64_t count,
                   uint8_t* codes, uint16_t* scales) {
    const std::vector<RowField> fields = matrix.kind->fields(matrix);
    QuantiseFunction* const quantise = matrix.kind->quantise[static_cast<int>(isa)];
    constexpr int64_t at_once = 16;
    pool.parallel((count + at_once - 1) / at_once, [&](int64_t task, int) {
        for (int64_t row = task * at_once; row < std::min(count, (task + 1) * at_once); ++row)
            quantise(matrix, rows + row * matrix.inputs, codes + row * fields[0].row_bytes,
                     scales + row * fields[1].row_bytes / 2);
    });
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

}  // namespace ockham
