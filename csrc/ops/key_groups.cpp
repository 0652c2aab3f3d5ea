#include "ops/key_groups.h"

#include <algorithm>

namespace ockham {

namespace {

// Copies the keys [low, high) of one group to their lanes of a group in scratch, with what pads them.
void gather_group(const LayerPlane& plane, int64_t head, const Cells& cells, int64_t group,
                  int64_t low, int64_t high, uint8_t* keys, uint8_t* values) {
    const int64_t start = group * group_keys;
    for (int64_t key = std::max(low, start); key < std::min(high, start + group_keys); ++key) {
        const int64_t slot = cells.slot(key), from = plane.lane(slot), to = key - start;
        plane.k.move(plane.key_group(slot, head), from, keys, to);
        plane.v.move(plane.value_group(slot, head), from, values, to);
    }
}

}  // namespace

void find_groups(const LayerPlane& plane, int64_t head, const Cells& cells, int64_t first_group,
                 int64_t low, int64_t high, Buffer& scratch, KeyGroup* groups) {
    if (high <= low) return;
    uint8_t* gathered = nullptr;
    for (int64_t g = low / group_keys; g <= (high - 1) / group_keys; ++g) {
        KeyGroup& found = groups[g - first_group];
        const int64_t cell = g * group_keys;
        if (plane.groups_in_place() && std::min(high, cell + group_keys) <= cells.context) {
            const int64_t page = cells.table[cell / cells.page_tokens];
            const int64_t in_page = cell % cells.page_tokens / group_keys;
            found = {plane.keys(page, head) + in_page * plane.k.group_bytes,
                     plane.values(page, head) + in_page * plane.v.group_bytes};
            continue;
        }
        const int64_t both = plane.k.group_bytes + plane.v.group_bytes;
        if (gathered == nullptr) gathered = scratch.take<uint8_t>(part_groups * both);
        uint8_t* keys = gathered + (g - first_group) * both;
        uint8_t* values = keys + plane.k.group_bytes;
        gather_group(plane, head, cells, g, low, high, keys, values);
        found = {keys, values};
    }
}

}  // namespace ockham
