// The state of all layers: keys and values in pages, laid out for the attention kernels.
//
// A page of one layer is, for each key-value head, its keys and then its values, both in groups of 16
// tokens (the last one padded), as KeyGroup in layer_kernels.h lays them out: a query's scores with 16
// keys are one vector. With pages of a multiple of 16 tokens and heads of a multiple of 32 elements
// nothing is padded. A head's keys and values of one page lie together, so that decoding streams them.
// How a type lies in memory is known to Side, and to the kernels.
#pragma once

#include <cstdint>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/layer_kernels.h"
#include "state/key_book.h"
#include "state/memory.h"
#include "state/side.h"

namespace ockham {

// A group of layers that keep keys and values of the same shape and types.
struct GroupShape {
    std::vector<int64_t> layers;
    int64_t kv_heads;
    int64_t head_dim;
    Element keys;
    Element values;
    int64_t pages;
    int64_t page_tokens;
    // Of each layer and head, at what its keys are reflected before int4 makes codes of them: head_dim
    // floats, as reflect() in side.h takes them. Empty: nothing is reflected.
    std::vector<float> mirrors = {};
    // Of each layer and head, a codebook of its keys. Empty: there are none.
    std::vector<KeyBook> books = {};
    // Where it is not 0, the layers keep no keys and values: of each token a row of so many floats, as
    // an operation leaves it. Such a group has one head, of that width.
    int64_t row_floats = 0;
    // Whether values are what the keys' plane holds, so that they are not stored a second time.
    bool latent = false;
};

// One layer's planes.
struct LayerPlane {
    uint8_t* data = nullptr;
    int64_t kv_heads = 0, head_dim = 0;
    int64_t width = 0;  // head_dim rounded up to 16
    int64_t pages = 0, page_tokens = 0;
    Side k, v;
    int64_t head_bytes = 0;  // keys and values of a page and head
    int64_t page_bytes = 0;
    // Of each 16 slots, which choosers' summaries of them are still of these keys: a bit for each.
    uint8_t* fresh = nullptr;
    int64_t row_floats = 0;  // of a token, where the layer keeps no keys and values
    // Whether a token's value is its key: `v` is then how values lie that make_values() makes of keys.
    bool latent = false;
    const float* mirrors = nullptr;  // of each head, if there are any
    const KeyBook* books = nullptr;  // likewise

    uint8_t* keys(int64_t page, int64_t head) const {
        return data + page * page_bytes + head * head_bytes;
    }
    // Of planes that are not latent.
    uint8_t* values(int64_t page, int64_t head) const { return keys(page, head) + k.page_bytes; }
    // Of a layer without keys and values: what it keeps of a slot's token.
    float* row(int64_t slot) const {
        return reinterpret_cast<float*>(data) + slot * row_floats;
    }
    // At what a head's keys, and the queries that read them, are reflected; null: at nothing.
    const float* mirror(int64_t head) const {
        return mirrors == nullptr ? nullptr : mirrors + head * head_dim;
    }
    // Where the group of a slot's token begins, and which of its tokens that is.
    uint8_t* key_group(int64_t slot, int64_t head) const {
        return keys(slot / page_tokens, head) + slot % page_tokens / group_keys * k.group_bytes;
    }
    uint8_t* value_group(int64_t slot, int64_t head) const {
        return values(slot / page_tokens, head) + slot % page_tokens / group_keys * v.group_bytes;
    }
    int64_t lane(int64_t slot) const { return slot % page_tokens % group_keys; }
    // Whether the 16 keys of an aligned group of cells always stand in one group of one page.
    bool groups_in_place() const { return page_tokens % group_keys == 0; }

    // To be called by whoever writes a key: what was made of it before is not of it any more.
    void changed(int64_t slot) const {
        if (fresh[slot / group_keys] != 0) fresh[slot / group_keys] = 0;
    }
    // A slot's key as floats, and zero for the elements that pad it.
    void widen_key(const RowKernels& kernels, int64_t slot, int64_t head, float* to) const;

    // Writes the keys and values of `count` tokens (kv_heads * head_dim floats each), rounded to the
    // planes' types, to the slots from `slot` on, which stand in one group of 16 (of latent planes the
    // keys alone); the keys of the next token stand `stride` floats behind, and its values `v_stride`.
    void store_run(const RowKernels& kernels, int64_t slot, int64_t count, const float* k,
                   const float* v, int64_t stride, int64_t v_stride) const;
};

// What the row of a slot's key chose in one layer, for the rows after it that visit the same.
struct HeldChoice {
    int64_t keys = 0;              // that the row saw
    std::vector<uint64_t> blocks;  // a bit for each block, one head after the other
};

class Planes {
   public:
    // Throws std::invalid_argument with a sentence if a shape makes no sense.
    explicit Planes(const std::vector<GroupShape>& groups);
    Planes(Planes&&) = default;

    const std::vector<GroupShape>& groups() const { return shapes_; }
    // In `group_of` the layer. Throws std::invalid_argument if no group holds it.
    LayerPlane layer(int64_t layer) const;
    // That of a layer in one of the groups that hold it.
    LayerPlane layer(int64_t layer, int64_t group) const;
    // The group that holds a layer's keys and values, or the first that holds it at all.
    int64_t group_of(int64_t layer) const;

    // As base.Planes says. The caller checks that all slots are in [0, slots(group)). `state` has for
    // each layer the rows of all tokens' keys, (count, kv_heads) of them, and then of their values;
    // where the rows of keys and values have other sizes, a value's row stands behind its key's.
    int64_t slots(int64_t group) const;
    // A `head`, or an `index` of a layer in the group, of -1 means all of them.
    void copy(int64_t group, int64_t head, int64_t index, const int64_t* source,
              const int64_t* target, int64_t count);
    void read(int64_t group, const int64_t* slots, int64_t count, void* state) const;
    void write(int64_t group, const int64_t* slots, int64_t count, const void* state);
    // The sides of a group's layers.
    Side keys(int64_t group) const { return plane(group, 0).k; }
    Side values(int64_t group) const { return plane(group, 0).v; }

    // A whole page of a group, all its layers one after the other, as the kernels have it. Page i goes
    // to (comes from) `data + i * stride`. The caller checks that all pages are there.
    int64_t stored_page_bytes(int64_t group) const;
    void read_pages(int64_t group, const int64_t* pages, int64_t count, uint8_t* data,
                    int64_t stride) const;
    void write_pages(int64_t group, const int64_t* pages, int64_t count, const uint8_t* data,
                     int64_t stride);
    // `count` bytes of a page as it lies in memory, from byte `start` on. The caller checks that they
    // are there.
    void read_part(int64_t group, int64_t page, int64_t start, int64_t count, uint8_t* data) const;
    void write_part(int64_t group, int64_t page, int64_t start, int64_t count, const uint8_t* data);
    // Has the system back the first `pages` of layer `index` of a group, so that who writes to them
    // first need not wait for it. Changes no content; may run beside anything.
    void back(int64_t group, int64_t index, int64_t pages) const;

    // For each layer and head, one after the other, the order of `count` slots in which keys that are
    // alike stand together (state/alike.h): places among the `slots`. On so many threads.
    std::vector<int32_t> alike(int64_t group, const int64_t* slots, int64_t count, int threads) const;

    // Summaries of a layer's keys, of each head and of each 16 slots, heads apart: as many bytes as a
    // chooser says. Made, zeroed, when they are first asked for, by the thread that runs steps;
    // LayerPlane::fresh says which of them hold something.
    uint8_t* summaries(int chooser, int64_t layer, int64_t summary_bytes) const;
    // By slot, what rows chose in a layer that reads keys of a group. It goes along where whole slots are copied, and with no other
    // move. To be used by the thread that runs steps.
    using HeldChoices = std::unordered_map<int64_t, HeldChoice>;
    HeldChoices& held(int64_t group, int64_t layer) const { return held_[{group, layer}]; }
    // Groups of 16 slots of a layer.
    int64_t slot_groups(int64_t group) const { return (slots(group) + group_keys - 1) / group_keys; }

   private:
    LayerPlane plane(int64_t group, int64_t index) const;
    int64_t index_of(int64_t group, int64_t layer) const;

    std::vector<GroupShape> shapes_;
    std::vector<Pages> memory_;
    std::vector<Pages> fresh_;  // of each group, a byte for each layer and 16 slots
    // By group and chooser.
    mutable std::map<std::pair<int64_t, int>, Pages> summaries_;
    mutable std::map<std::pair<int64_t, int64_t>, HeldChoices> held_;  // by group and layer
};

}  // namespace ockham
