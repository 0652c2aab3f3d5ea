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
        if (!plane.latent) plane.v.move(plane.value_group(slot, head), from, values, to);
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
                     plane.latent ? nullptr
                                  : plane.values(page, head) + in_page * plane.v.group_bytes};
            continue;
        }
        const int64_t both = plane.k.group_bytes + (plane.latent ? 0 : plane.v.group_bytes);
        if (gathered == nullptr) gathered = scratch.take<uint8_t>(part_groups * both);
        uint8_t* keys = gathered + (g - first_group) * both;
        uint8_t* values = plane.latent ? nullptr : keys + plane.k.group_bytes;
        gather_group(plane, head, cells, g, low, high, keys, values);
        found = {keys, values};
    }
}

void make_values(const LayerPlane& plane, int64_t low, int64_t high, int64_t first_group,
                 Buffer& scratch, KeyGroup* groups) {
    const int64_t bytes = plane.v.group_bytes, width = plane.v.units, block = low / block_keys;
    uint8_t* made = scratch.take<uint8_t>(block_groups * bytes);
    for (int64_t g = low / group_keys; g * group_keys < high; ++g) {
        KeyGroup& group = groups[g - first_group];
        uint8_t* to = made + (g - block * block_groups) * bytes;
        if (plane.k.element == Element::fp32) {
            const auto* keys = static_cast<const uint32_t*>(group.keys);
            auto* values = reinterpret_cast<uint32_t*>(to);
            for (int64_t e = 0; e < width; e += 16)
                for (int64_t lane = 0; lane < group_keys; ++lane)
                    for (int64_t i = e; i < e + 16; ++i)
                        values[lane * width + i] = keys[i * group_keys + lane];
        } else {
            // Of two elements of two keys, those of the second key change places with the second ones.
            const auto* keys = static_cast<const uint64_t*>(group.keys);
            auto* values = reinterpret_cast<uint64_t*>(to);
            for (int64_t pair = 0; pair < width / 2; pair += 8)
                for (int64_t two = 0; two < group_keys / 2; ++two)
                    for (int64_t i = pair; i < pair + 8; ++i) {
                        const uint64_t x = keys[i * (group_keys / 2) + two];
                        values[two * (width / 2) + i] = (x & 0xFFFF00000000FFFFu) |
                                                        (x >> 16 & 0xFFFF0000u) |
                                                        (x & 0xFFFF0000u) << 16;
                    }
        }
        group.values = to;
    }
}

}  // namespace ockham
