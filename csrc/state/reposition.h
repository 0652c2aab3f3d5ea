// Stored keys at another position: a rotary embedding composes, so that a key which was rotated to one
// position is rotated on to another by the difference of the two.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/layer_kernels.h"
#include "state/planes.h"
#include "state/rope.h"

namespace ockham {

class ThreadPool;

// What `reposition` copies, cut to runs of consecutive tokens of one source group of 16 and one target
// group, that turn by the same angle.
struct Runs {
    struct Run {
        int64_t source, target;  // the first slots
        int64_t count;
        int64_t shift;  // index into `shifts`
    };
    std::vector<Run> runs;
    std::vector<int32_t> shifts;  // each once
};

// Positions `shifts[i]` on for each of `count` pairs of slots.
Runs cut_runs(const int64_t* source, const int64_t* target, const int32_t* shifts, int64_t count,
              int64_t page_tokens);

// Copies one layer's keys, rotated on (rounded once to the planes' type), and values as they are.
// `angles` holds for each shift the cosines and then the sines of `half` pairs; a shift of 0 changes
// no bit, whatever it holds. Sources and targets must not overlap.
void reposition(const RowKernels& kernels, const LayerPlane& plane, int64_t head, const Runs& runs,
                const float* angles, int64_t half);

// Copies the state of slots `source` of a group to its slots `target`, in all layers and heads, the
// keys rotated on by `shifts[i]` positions.
void reposition(ThreadPool& pool, const RowKernels& kernels, const Planes& planes,
                const Ropes& ropes, int64_t group, const int64_t* source, const int64_t* target,
                const int32_t* shifts, int64_t count);

}  // namespace ockham
