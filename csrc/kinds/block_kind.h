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

// Bits [from, from + width) of 32 codes, packed in words of `8 / width` quads: words [first, ...).
template <int width, class Store>
void lay_plane(const uint8_t* codes, int from, int first, Store store) {
    constexpr int quads = 8 / width;
    // Four codes at once: no operation moves a bit from one byte to another.
    constexpr uint32_t mask = 0x01010101 * ((1 << width) - 1);
    for (int unit = 0; unit < width; ++unit) {
        uint32_t word = 0;
        for (int quad = 0; quad < quads; ++quad)
            word |= (four(codes + 4 * (unit * quads + quad)) >> from & mask) << quad * width;
        store(first + unit, word);
    }
}

// The codes of a step of one lane: of 32 inputs, or of 16 in 4 bits.
template <int bits, int64_t inputs = 32>
void lay_step(const uint8_t* codes, int64_t lane, uint8_t* step) {
    const auto store = [&](int64_t unit, uint32_t word) {
        std::memcpy(step + (unit * panel_outputs + lane) * 4, &word, 4);
    };
    if constexpr (bits == 8) {
        for (int unit = 0; unit < 8; ++unit) store(unit, four(codes + 4 * unit));
    } else if constexpr (bits < 4) {
        lay_plane<2>(codes, 0, 0, store);
        if constexpr (bits == 3) lay_plane<1>(codes, 2, 2, store);
    } else {
        static_assert(bits == 4 || inputs == 32, "planes of high bits are of 32 inputs");
        for (int unit = 0; unit < inputs / 8; ++unit) store(unit, nibbles(codes + 8 * unit));
        if constexpr (bits > 4) lay_plane<bits - 4>(codes, 4, 4, store);
    }
}

// Bits of input k of lane `lane` from a plane that lay_plane made.
template <int width>
int plane_bits(const uint8_t* plane, int64_t lane, int64_t k) {
    constexpr int64_t quads = 8 / width;
    const uint8_t byte = plane[(k / 4 / quads * 16 + lane) * 4 + k % 4];
    return byte >> k / 4 % quads * width & ((1 << width) - 1);
}

// Input k of lane `lane` of a step's codes, counted from the lowest.
template <int bits>
int code_of(const uint8_t* step, int64_t lane, int64_t k) {
    if constexpr (bits == 8) {
        return step[(k / 4 * 16 + lane) * 4 + k % 4];
    } else if constexpr (bits < 4) {
        const int low = plane_bits<2>(step, lane, k);
        if constexpr (bits == 2) return low;
        return low | plane_bits<1>(step + 128, lane, k) << 2;
    } else {
        const uint8_t both = step[(k / 8 * 16 + lane) * 4 + k % 4];
        const int low = k % 8 < 4 ? both & 15 : both >> 4;
        if constexpr (bits == 4) return low;
        else return low | plane_bits<bits - 4>(step + 256, lane, k) << 4;
    }
}

// `Kind` has a static `shape`, and `name`.
template <class Kind>
struct BlockKind {
    static constexpr BlockShape shape = Kind::shape;
    static constexpr int64_t scale_bytes = shape.scale_bytes();

    static int64_t blocks(const PackedMatrix& matrix) { return matrix.inputs / shape.inputs; }

    static void check(const PackedMatrix& matrix, bool) {
        if (matrix.inputs % shape.inputs)
            throw std::invalid_argument("blocks of " + std::to_string(shape.inputs) +
                                        " inputs do not divide the number of inputs.");
    }

    static std::vector<PackedArray> arrays(const PackedMatrix& matrix, bool) {
        std::vector<PackedArray> all = {{"weight", "uint8", {matrix.panels(), blocks(matrix), shape.bytes()}}};
        if (shape.divisors) all.push_back({"scale", "float32", {matrix.panels(), panel_outputs}});
        return all;
    }

    static std::vector<RowField> fields(const PackedMatrix& matrix) {
        const int64_t count = blocks(matrix);
        std::vector<RowField> all = {{"codes", matrix.inputs}, {"scales", count * scale_bytes}};
        if (shape.minima) all.push_back({"minima", count * 2});
        if (shape.scale_group) all.push_back({"group_scales", count * shape.groups()});
        if (shape.scale_group && shape.minima) all.push_back({"group_minima", count * shape.groups()});
        if (shape.divisors) all.push_back({"divisors", 4});
        return all;
    }

    static InputForm input(const PackedMatrix& matrix) {
        const InputKind* form = shape.scale_group == 0
                                    ? (shape.minima ? &summed_input : &quantised_input)
                                : !shape.minima           ? &summed_by_16_input
                                : shape.scale_group == 16 ? &paired_by_16_input
                                                          : &summed_by_8_input;
        return {form, matrix.inputs, shape.inputs, shape.minima ? 0 : shape.zero};
    }

    static void pack_panel(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to) {
        static_assert(!shape.divisors || !(shape.minima || shape.scale_group), "they are the third field");
        if constexpr (shape.divisors) lay_items(fields[2], 4, 1, 4, to.scale);
        const int64_t count = blocks(matrix);
        // `per_block` items of `bytes` bytes of each row's block, as [item][lane][bytes].
        const auto items = [&](const uint8_t* rows, int64_t block, int64_t per_block, int64_t bytes,
                               int64_t at) {
            const int64_t own = per_block * bytes;
            lay_items(rows + block * own, count * own, per_block, bytes, to.weight + at);
        };
        for (int64_t block = 0; block < count; ++block, to.weight += shape.bytes()) {
            for (int64_t step = 0; step < shape.steps(); ++step)
                for (int64_t lane = 0; lane < panel_outputs; ++lane)
                    lay_step<shape.bits, shape.step_inputs()>(
                        fields[0] + lane * matrix.inputs + block * shape.inputs + step * 32, lane,
                        to.weight + step * 64 * shape.bits);
            if constexpr (shape.scale_group != 0) {
                items(fields[shape.minima ? 3 : 2], block, shape.groups(), 1, shape.scales_at());
                if constexpr (shape.minima)
                    items(fields[4], block, shape.groups() / 2, 2, shape.minima_at());
            }
            items(fields[1], block, 1, scale_bytes, shape.halves_at());
            if constexpr (shape.minima) items(fields[2], block, 1, 2, shape.halves_at() + 32);
        }
    }

    // A block's d of one output.
    static float scale(const uint8_t* from) {
        if constexpr (shape.scale == BlockScale::exponent) {
            const uint32_t e = *from, bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
            float d;
            std::memcpy(&d, &bits, 4);
            return d;
        } else if constexpr (shape.scale == BlockScale::small) {
            const uint16_t half = static_cast<uint16_t>(*from << 7);
            return from_half(&half) * 128.0f;
        } else {
            return from_half(from) / (1 << shape.halvings);
        }
    }

    // The values that the `gguf` package gives, to the bit.
    static void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
        const int64_t count = blocks(matrix), lane = output % panel_outputs;
        const uint8_t* block =
            static_cast<const uint8_t*>(matrix.weight) + output / panel_outputs * count * shape.bytes();
        for (int64_t b = 0; b < count; ++b, block += shape.bytes(), row += shape.inputs) {
            float d = scale(block + shape.halves_at() + scale_bytes * lane);
            if constexpr (shape.divisors) d /= static_cast<const float*>(matrix.scale)[output];
            const float m = shape.minima ? from_half(block + shape.halves_at() + 32 + 2 * lane) : 0.0f;
            for (int64_t k = 0; k < shape.inputs; ++k) {
                int code = code_of<shape.bits>(block + k / 32 * 64 * shape.bits, lane, k % 32);
                if constexpr (shape.levels != nullptr) code = shape.levels->bytes[code];
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

// The record of a kind of blocks; the rest is the list of its kernels.
#define OCKHAM_BLOCK_KIND(type, tile) OCKHAM_BLOCK_KIND_OF(type, OCKHAM_EACH_TILES(tile))
#define OCKHAM_BLOCK_KIND_OF(type, ...)                                                             \
    const LinearKind kind = {type::name,                                                          \
                             BlockKind<type>::check,                                              \
                             BlockKind<type>::arrays,                                             \
                             BlockKind<type>::fields,                                             \
                             BlockKind<type>::input,                                              \
                             BlockKind<type>::pack_panel,                                         \
                             BlockKind<type>::unpack_row,                                         \
                             __VA_ARGS__};                                            \
    const AddedKind added { kind }

}  // namespace ockham
