#include <cstring>

#include "kernels/blocks.h"
#include "kernels/pack.h"
#include "kernels/threads.h"

namespace ockham {

namespace {

constexpr int64_t step_inputs = 32;

// Four codes at once. No operation below moves a bit from one byte to another.
uint32_t four(const uint8_t* codes) {
    uint32_t word;
    std::memcpy(&word, codes, 4);
    return word;
}

void store(uint8_t* step, int64_t unit, int64_t lane, uint32_t word) {
    std::memcpy(step + (unit * panel_outputs + lane) * 4, &word, 4);
}

// The codes of 32 inputs of one lane.
template <int bits>
void pack_step(const uint8_t* codes, int64_t lane, uint8_t* step) {
    if constexpr (bits == 8) {
        for (int unit = 0; unit < 8; ++unit) store(step, unit, lane, four(codes + 4 * unit));
    } else {
        for (int unit = 0; unit < 4; ++unit)
            store(step, unit, lane,
                  (four(codes + 8 * unit) & 0x0f0f0f0f) | (four(codes + 8 * unit + 4) & 0x0f0f0f0f) << 4);
        constexpr int width = bits - 4, quads = width ? 8 / width : 0;  // of a unit of high bits
        constexpr uint32_t mask = 0x01010101 * ((1 << width) - 1);
        for (int unit = 0; unit < width; ++unit) {
            uint32_t high = 0;
            for (int quad = 0; quad < quads; ++quad)
                high |= (four(codes + 4 * (unit * quads + quad)) >> 4 & mask) << quad * width;
            store(step, 4 + unit, lane, high);
        }
    }
}

// `per_block` items of `bytes` bytes of each block, as [item][lane][bytes].
void pack_items(const uint8_t* rows, int64_t blocks, int64_t block, int64_t per_block, int64_t bytes,
                uint8_t* to) {
    for (int64_t lane = 0; lane < panel_outputs; ++lane) {
        const uint8_t* from = rows + (lane * blocks + block) * per_block * bytes;
        for (int64_t item = 0; item < per_block; ++item)
            std::memcpy(to + (item * panel_outputs + lane) * bytes, from + item * bytes, bytes);
    }
}

template <int bits>
void pack_panels(ThreadPool& pool, const BlockShape& shape, const BlockFields& rows, int64_t panels,
                 int64_t inputs, uint8_t* weight) {
    const int64_t blocks = inputs / shape.inputs;
    const int64_t groups = shape.scale_group ? shape.inputs / shape.scale_group : 0;
    pool.parallel(panels, [&](int64_t panel, int) {
        const int64_t first = panel * panel_outputs, first_block = first * blocks;
        const uint8_t* codes = rows.codes + first * inputs;
        uint8_t* to = weight + panel * blocks * shape.bytes();
        for (int64_t block = 0; block < blocks; ++block, to += shape.bytes()) {
            for (int64_t step = 0; step < shape.inputs / step_inputs; ++step)
                for (int64_t lane = 0; lane < panel_outputs; ++lane)
                    pack_step<bits>(
                        codes + lane * inputs + block * shape.inputs + step * step_inputs, lane,
                        to + step * 64 * bits);
            if (groups)
                pack_items(rows.group_scales + first_block * groups, blocks, block, groups, 1,
                           to + shape.scales_at());
            if (groups && shape.minima)
                pack_items(rows.group_minima + first_block * groups, blocks, block, groups / 2, 2,
                           to + shape.minima_at());
            pack_items(rows.scales + first_block * 2, blocks, block, 1, 2, to + shape.halves_at());
            if (shape.minima)
                pack_items(rows.minima + first_block * 2, blocks, block, 1, 2,
                           to + shape.halves_at() + 32);
        }
    });
}

}  // namespace

void pack_blocks(ThreadPool& pool, Kind kind, const BlockFields& rows, int64_t panels, int64_t inputs,
                 uint8_t* weight) {
    const BlockShape shape = block_shape(kind);
    switch (shape.bits) {
        case 4:
            return pack_panels<4>(pool, shape, rows, panels, inputs, weight);
        case 5:
            return pack_panels<5>(pool, shape, rows, panels, inputs, weight);
        case 6:
            return pack_panels<6>(pool, shape, rows, panels, inputs, weight);
        case 8:
            return pack_panels<8>(pool, shape, rows, panels, inputs, weight);
    }
}

}  // namespace ockham
