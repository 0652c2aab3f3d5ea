#include "state/reposition.h"

#include <algorithm>
#include <cmath>

#include "kernels/threads.h"

namespace ockham {

Runs cut_runs(const int64_t* source, const int64_t* target, const int32_t* shifts, int64_t count,
              int64_t page_tokens) {
    Runs found;
    // Tokens left in the group of 16 that a slot stands in, which ends at the latest with its page.
    const auto left = [&](int64_t slot) {
        const int64_t offset = slot % page_tokens;
        return std::min(group_keys - offset % group_keys, page_tokens - offset);
    };
    for (int64_t i = 0; i < count;) {
        int64_t shift = 0;
        const int64_t known = static_cast<int64_t>(found.shifts.size());
        while (shift < known && found.shifts[shift] != shifts[i]) ++shift;
        if (shift == known) found.shifts.push_back(shifts[i]);
        const int64_t most = std::min({left(source[i]), left(target[i]), count - i});
        int64_t run = 1;
        while (run < most && source[i + run] == source[i] + run &&
               target[i + run] == target[i] + run && shifts[i + run] == shifts[i])
            ++run;
        found.runs.push_back({source[i], target[i], run, shift});
        i += run;
    }
    return found;
}

namespace {

// Where keys are codes: what they mean is rotated, and made codes again.
void turn_codes(const RowKernels& kernels, const Side& side, const float* mirror,
                const uint8_t* from, uint8_t* to, GroupRun run, const float* cosines, const float* sines, int64_t half) {
    float key[most_coded_dim];
    for (int64_t i = 0; i < run.count; ++i) {
        if (half == 0) {
            side.move(from, run.from + i, to, run.to + i);
            continue;
        }
        side.decode(kernels, from, run.from + i, mirror, key);
        kernels.rotate(key, cosines, sines, half);
        side.encode(kernels, key, mirror, to, run.to + i);
    }
}

}  // namespace

void reposition(const RowKernels& kernels, const LayerPlane& plane, int64_t head, const Runs& runs,
                const float* angles, int64_t half) {
    const bool bf16 = plane.k.element == Element::bf16;
    for (const Runs::Run& run : runs.runs) {
        plane.changed(run.target);
        const int64_t pairs = runs.shifts[run.shift] == 0 ? 0 : half;
        const float* cosines = angles + run.shift * 2 * half;
        const GroupRun lanes{plane.lane(run.source), plane.lane(run.target), run.count, plane.width};
        const uint8_t* from_keys = plane.key_group(run.source, head);
        const uint8_t* from_values = plane.latent ? nullptr : plane.value_group(run.source, head);
        uint8_t* to_keys = plane.key_group(run.target, head);
        uint8_t* to_values = plane.latent ? nullptr : plane.value_group(run.target, head);
        if (plane.k.coded()) {
            turn_codes(kernels, plane.k, plane.mirror(head), from_keys, to_keys, lanes, cosines,
                       cosines + half, pairs);
            for (int64_t i = 0; i < run.count; ++i)
                plane.v.move(from_values, lanes.from + i, to_values, lanes.to + i);
            continue;
        }
        (bf16 ? kernels.turn_bf16 : kernels.turn_fp32)(from_keys, to_keys, lanes, cosines,
                                                       cosines + half, pairs);
        if (plane.latent) continue;
        (bf16 ? kernels.copy_values_bf16 : kernels.copy_values_fp32)(from_values, to_values, lanes);
    }
}

// The angle is rounded to fp32, as where keys are rotated first, and its cosine is computed in double
// and rounded once. The rope's scale is in the stored keys already.
void reposition(ThreadPool& pool, const RowKernels& kernels, const Planes& planes,
                const Ropes& ropes, int64_t group, const int64_t* source, const int64_t* target,
                const int32_t* shifts, int64_t count) {
    const GroupShape& shape = planes.groups()[group];
    if (shape.row_floats > 0) {  // nothing in them depends on a position
        pool.parallel(static_cast<int64_t>(shape.layers.size()), [&](int64_t task, int) {
            const LayerPlane plane = planes.layer(shape.layers[static_cast<size_t>(task)]);
            for (int64_t i = 0; i < count; ++i)
                std::copy_n(plane.row(source[i]), plane.row_floats, plane.row(target[i]));
        });
        return;
    }
    const Runs runs = cut_runs(source, target, shifts, count, shape.page_tokens);
    std::vector<std::vector<float>> angles;  // of each rope (shifts, 2, half)
    for (const Rope& rope : ropes.all()) {
        std::vector<float>& of_rope = angles.emplace_back();
        for (const int32_t shift : runs.shifts) {
            const size_t half = rope.inverse_frequencies.size(), begin = of_rope.size();
            of_rope.resize(begin + 2 * half);
            for (size_t i = 0; i < half; ++i) {
                const double angle = static_cast<float>(shift) * rope.inverse_frequencies[i];
                of_rope[begin + i] = static_cast<float>(std::cos(angle));
                of_rope[begin + half + i] = static_cast<float>(std::sin(angle));
            }
        }
    }
    const auto tasks = static_cast<int64_t>(shape.layers.size()) * shape.kv_heads;
    pool.parallel(tasks, [&](int64_t task, int) {
        const int64_t layer = shape.layers[static_cast<size_t>(task / shape.kv_heads)];
        const int64_t rope = ropes.of_layer(layer);
        const float* of_rope = rope < 0 ? nullptr : angles[static_cast<size_t>(rope)].data();
        const int64_t half = rope < 0 ? 0 : ropes.all()[static_cast<size_t>(rope)].half();
        reposition(kernels, planes.layer(layer), task % shape.kv_heads, runs, of_rope, half);
    });
}

}  // namespace ockham
