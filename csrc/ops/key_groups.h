// Where the keys and values of 16 logical keys stand.
#pragma once

#include "kernels/layer_kernels.h"
#include "ops/paged_attention.h"
#include "run.h"
#include "state/planes.h"

namespace ockham {

// Fills groups[g - first_group] for the groups that hold the keys [low, high) of one part: in place
// where 16 cells of the context stand together in a page, otherwise gathered into scratch. Of latent
// planes the values are null.
void find_groups(const LayerPlane& plane, int64_t head, const Cells& cells, int64_t first_group,
                 int64_t low, int64_t high, Buffer& scratch, KeyGroup* groups);

// Makes the values of the groups that hold the keys [low, high) of one block of latent planes: what the
// keys hold, as values lie.
void make_values(const LayerPlane& plane, int64_t low, int64_t high, int64_t first_group,
                 Buffer& scratch, KeyGroup* groups);

}  // namespace ockham
