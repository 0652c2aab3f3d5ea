// How the keys, or the values, of a layer lie in memory, by the type in which they are stored.
#pragma once

#include <cstdint>

#include "kernels/layer_kernels.h"

namespace ockham {

// The keys, or the values, of a layer: how those of one head lie in memory. A *unit* is what has a
// place of its own: an element, or two codes of int4.
struct Side {
    Element element = Element::fp32;
    bool values = false;
    int64_t head_dim = 0;
    int64_t together = 2;     // units that one instruction multiplies, but for fp32
    int64_t units = 0;        // of a token, with those that pad it
    int64_t unit_bytes = 0;
    int64_t group_bytes = 0;  // of 16 tokens
    int64_t page_bytes = 0;   // of a page and head

    Side() = default;
    Side(Element element, bool values, int64_t head_dim, int64_t page_tokens);

    bool coded() const { return ockham::coded(element); }
    bool rotated() const { return element == Element::int4; }
    // Where a unit of a token stands in its group, in units.
    int64_t place(int64_t lane, int64_t unit) const {
        if (element == Element::fp32)
            return values ? lane * units + unit : unit * group_keys + lane;
        return values ? (lane / together * units + unit) * together + lane % together
                      : (unit / together * group_keys + lane) * together + unit % together;
    }
    // Where the scale (or grid) of a token's codes stands in its group, in bytes.
    int64_t scale_at(int64_t lane) const {
        return group_keys * units * unit_bytes + lane * static_cast<int64_t>(sizeof(float));
    }
    // Copies what one token has, padding included, between lanes of two groups.
    void move(const uint8_t* from, int64_t from_lane, uint8_t* to, int64_t to_lane) const;

    // A token's row outside of the planes: its elements, or its codes (of int4 the even element in the
    // low half of a byte) and then its scale.
    int64_t row_bytes() const;
    void read(const uint8_t* group, int64_t lane, uint8_t* row) const;
    void write(uint8_t* group, int64_t lane, const uint8_t* row) const;
    // The same for codes alone, one to a byte, and the bits of their scale or grid.
    uint32_t read_codes(const uint8_t* group, int64_t lane, int8_t* codes) const;
    void write_codes(uint8_t* group, int64_t lane, const int8_t* codes, uint32_t scale) const;
    // A row of head_dim floats as codes, and what a row of codes means. What is rotated is reflected
    // at `mirror` first, unless that is null.
    void encode(const RowKernels& kernels, const float* x, const float* mirror, uint8_t* group,
                int64_t lane) const;
    void decode(const RowKernels& kernels, const uint8_t* group, int64_t lane, const float* mirror,
                float* x) const;
};

// x = x - (x . mirror) * mirror, where mirror . mirror is 2: a reflection, its own inverse. The product
// is summed in 16 lanes, and those as a tree.
void reflect(const float* mirror, int64_t length, float* x);

}  // namespace ockham
