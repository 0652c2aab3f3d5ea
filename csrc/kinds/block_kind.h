// A kind of blocks.h but for its kernels: what BlockShape decides. For NAME.cpp without an instruction set.
#pragma once

#include <stdexcept>
#include <string>

#include "isa/each.h"
#include "kernels/halves.h"
#include "kernels/inputs.h"
#include "kinds/blocks.h"
#include "kinds/kind.h"
#include "kinds/lay_out.h"

namespace ockham {

// The codes of 32 inputs of one lane.
template <int bits>
void lay_step(const uint8_t* codes, int64_t lane, uint8_t* step) {
    const auto store = [&](int64_t unit, uint32_t word) {
        std::memcpy(step + (unit * panel_outputs + lane) * 4, &word, 4);
    };
    if constexpr (bits == 8) {
        for (int unit = 0; unit < 8; ++unit) store(unit, four(codes + 4 * unit));
    } else {
        // Four codes at once: no operation moves a bit from one byte to another.
        for (int unit = 0; unit < 4; ++unit) store(unit, nibbles(codes + 8 * unit));
        constexpr int width = bits - 4, quads = width ? 8 / width : 0;  // of a unit of high bits
        constexpr uint32_t mask = 0x01010101 * ((1 << width) - 1);
        for (int unit = 0; unit < width; ++unit) {
            uint32_t high = 0;
            for (int quad = 0; quad < quads; ++quad)
                high |= (four(codes + 4 * (unit * quads + quad)) >> 4 & mask) << quad * width;
            store(4 + unit, high);
        }
    }
}

// Input k of lane `lane` of a step's codes, counted from the lowest.
template <int bits>
int code_of(const uint8_t* step, int64_t lane, int64_t k) {
    if constexpr (bits == 8) {
        return step[(k / 4 * 16 + lane) * 4 + k % 4];
    } else {
        const uint8_t both = step[(k / 8 * 16 + lane) * 4 + k % 4];
        const int low = k % 8 < 4 ? both & 15 : both >> 4;
        if constexpr (bits == 4) {
            return low;
        } else {
            constexpr int64_t width = bits - 4, quads = 8 / width;  // of a unit of high bits
            const uint8_t high = step[256 + (k / 4 / quads * 16 + lane) * 4 + k % 4];
            return low | (high >> k / 4 % quads * width & ((1 << width) - 1)) << 4;
        }
    }
}

// `Kind` has a static `shape`, and `name`.
template <class Kind>
struct BlockKind {
    static constexpr BlockShape shape = Kind::shape;

    static int64_t blocks(const PackedMatrix& matrix) { return matrix.inputs / shape.inputs; }

    static void check(const PackedMatrix& matrix, bool) {
        if (matrix.inputs % shape.inputs)
            throw std::invalid_argument("blocks of " + std::to_string(shape.inputs) +
                                        " inputs do not divide the number of inputs.");
    }

    static std::vector<PackedArray> arrays(const PackedMatrix& matrix, bool) {
        return {{"weight", "uint8", {matrix.panels(), blocks(matrix), shape.bytes()}}};
    }

    static std::vector<RowField> fields(const PackedMatrix& matrix) {
        const int64_t count = blocks(matrix);
        std::vector<RowField> all = {{"codes", matrix.inputs}, {"scales", count * 2}};
        if (shape.minima) all.push_back({"minima", count * 2});
        if (shape.scale_group) all.push_back({"group_scales", count * shape.groups()});
        if (shape.scale_group && shape.minima) all.push_back({"group_minima", count * shape.groups()});
        return all;
    }

    static InputForm input(const PackedMatrix& matrix) {
        const InputKind* form = shape.scale_group == 0
                                    ? (shape.minima ? &summed_input : &quantised_input)
                                    : (shape.minima ? &summed_by_8_input : &summed_by_16_input);
        return {form, matrix.inputs, shape.inputs, shape.minima ? 0 : shape.zero};
    }

    static void pack_panel(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to) {
        const int64_t count = blocks(matrix);
        // `per_block` items of `bytes` bytes of each row's block, as [item][lane][bytes].
        const auto items = [&](const uint8_t* rows, int64_t block, int64_t per_block, int64_t bytes,
                               int64_t at) {
            const int64_t own = per_block * bytes;
            lay_items(rows + block * own, count * own, per_block, bytes, to.weight + at);
        };
        for (int64_t block = 0; block < count; ++block, to.weight += shape.bytes()) {
            for (int64_t step = 0; step < shape.inputs / 32; ++step)
                for (int64_t lane = 0; lane < panel_outputs; ++lane)
                    lay_step<shape.bits>(
                        fields[0] + lane * matrix.inputs + block * shape.inputs + step * 32, lane,
                        to.weight + step * 64 * shape.bits);
            if constexpr (shape.scale_group != 0) {
                items(fields[shape.minima ? 3 : 2], block, shape.groups(), 1, shape.scales_at());
                if constexpr (shape.minima)
                    items(fields[4], block, shape.groups() / 2, 2, shape.minima_at());
            }
            items(fields[1], block, 1, 2, shape.halves_at());
            if constexpr (shape.minima) items(fields[2], block, 1, 2, shape.halves_at() + 32);
        }
    }

    // The values that the `gguf` package gives, to the bit.
    static void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
        const int64_t count = blocks(matrix), lane = output % panel_outputs;
        const uint8_t* block =
            static_cast<const uint8_t*>(matrix.weight) + output / panel_outputs * count * shape.bytes();
        for (int64_t b = 0; b < count; ++b, block += shape.bytes(), row += shape.inputs) {
            const float d = from_half(block + shape.halves_at() + 2 * lane);
            const float m = shape.minima ? from_half(block + shape.halves_at() + 32 + 2 * lane) : 0.0f;
            for (int64_t k = 0; k < shape.inputs; ++k) {
                const int code = code_of<shape.bits>(block + k / 32 * 64 * shape.bits, lane, k % 32);
                const float value = static_cast<float>(code - (shape.minima ? 0 : shape.zero));
                if constexpr (shape.scale_group == 0) {
                    row[k] = shape.minima ? d * value + m : d * value;
                } else {
                    const int64_t group = k / shape.scale_group;
                    const uint8_t byte = block[shape.scales_at() + group * 16 + lane];
                    const float scale = shape.signed_scales ? static_cast<float>(static_cast<int8_t>(byte))
                                                            : static_cast<float>(byte);
                    row[k] = d * scale * value;
                    if constexpr (shape.minima)
                        row[k] -= m * static_cast<float>(
                                          block[shape.minima_at() + (group / 2 * 16 + lane) * 2 + group % 2]);
                }
            }
        }
    }
};

// The record of a kind of blocks; `tile` is the list of its kernels.
#define OCKHAM_BLOCK_KIND(type, tile)                                                             \
    const LinearKind kind = {type::name,                                                          \
                             BlockKind<type>::check,                                              \
                             BlockKind<type>::arrays,                                             \
                             BlockKind<type>::fields,                                             \
                             BlockKind<type>::input,                                              \
                             BlockKind<type>::pack_panel,                                         \
                             BlockKind<type>::unpack_row,                                         \
                             OCKHAM_EACH_TILES(tile)};                                            \
    const AddedKind added { kind }

}  // namespace ockham
