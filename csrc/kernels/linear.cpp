#include "kernels/linear.h"

#include <algorithm>
#include <cstring>

#include "kernels/blocks.h"
#include "kernels/halves.h"
#include "kernels/kernels.h"
#include "kernels/threads.h"

namespace ockham {

namespace {

int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// A group of int8 weights as they were before they were rotated: hadamard() of prepare_kernels.h again.
void rotate_back(float* values) {
    for (int64_t half = 1; half < int8_group; half *= 2)
        for (int64_t i = 0; i < int8_group; ++i)
            if (!(i & half)) {
                const float a = values[i], b = values[i + half];
                values[i] = a + b;
                values[i + half] = a - b;
            }
    for (int64_t i = 0; i < int8_group; ++i) values[i] *= 0.125f;
}

}  // namespace

size_t PackedMatrix::weight_bytes() const {
    const size_t lanes = static_cast<size_t>(panels()) * panel_outputs;
    switch (kind) {
        case Kind::fp32:
            return lanes * inputs * 4;
        case Kind::bf16:
            return lanes * round_up(inputs, 2) * 2;
        case Kind::int8:
            return lanes * round_up(inputs, int8_group);
        case Kind::int4:
            return lanes * inputs / 2;
        default: {
            const BlockShape shape = block_shape(kind);
            return panels() * (inputs / shape.inputs) * shape.bytes();
        }
    }
}

size_t PackedMatrix::scale_bytes() const {
    const size_t lanes = static_cast<size_t>(panels()) * panel_outputs;
    if (kind == Kind::int8)
        return group ? lanes * (round_up(inputs, int8_group) / int8_group) * 2 : lanes * 4;
    return kind == Kind::int4 ? lanes * (inputs / group) * 2 : 0;
}

size_t PackedMatrix::zero_bytes() const {
    return kind == Kind::int4 && zero ? scale_bytes() / 2 : 0;
}

int64_t InputForm::row_bytes() const {
    switch (kind) {
        case Kind::fp32:
            return round_up(inputs * 4, 64);
        case Kind::bf16:
            return round_up(inputs * 2, 64);
        default:
            return round_up(inputs, 64);
    }
}

size_t InputForm::bytes(int64_t rows) const {
    size_t total = static_cast<size_t>(rows) * row_bytes();
    if (kind != Kind::fp32 && kind != Kind::bf16)
        total += round_up(rows * groups() * 4, 64) + round_up(rows * offset_words() * 4, 64);
    return total;
}

int64_t InputForm::offset_words() const {
    return groups() * (kind < Kind::q8_0 ? 1 : block_offset_words(kind));
}

InputForm input_form(const PackedMatrix& matrix) {
    if (matrix.kind >= Kind::q8_0)
        return {block_form(matrix.kind), matrix.inputs, block_shape(matrix.kind).inputs};
    if (matrix.kind == Kind::int8)
        return {matrix.kind, matrix.inputs, int8_group, matrix.group != 0};
    return {matrix.kind, matrix.inputs, matrix.kind == Kind::int4 ? matrix.group : 0};
}

PreparedInput::PreparedInput(const InputForm& form, int64_t rows, void* memory)
    : form(form), rows(rows), values(static_cast<uint8_t*>(memory)) {
    if (form.kind == Kind::fp32 || form.kind == Kind::bf16) return;
    uint8_t* after = values + rows * form.row_bytes();
    scales = reinterpret_cast<float*>(after);
    offsets = reinterpret_cast<int32_t*>(after + round_up(rows * form.groups() * 4, 64));
}

void prepare_row(Isa isa, const PreparedInput& input, int64_t row, const float* x) {
    linear_kernels(isa).prepare_row(input, row, x);
}

void prepare(ThreadPool& pool, Isa isa, const PreparedInput& input, const float* x,
             int64_t x_stride) {
    // A few rows are quantised faster than another thread is asked to help.
    constexpr int64_t values_per_task = 1 << 14;
    const auto prepare_row = linear_kernels(isa).prepare_row;
    const int64_t rows_per_task = std::max<int64_t>(1, values_per_task / input.form.inputs);
    pool.parallel((input.rows + rows_per_task - 1) / rows_per_task, [&](int64_t task, int) {
        const int64_t end = std::min(input.rows, (task + 1) * rows_per_task);
        for (int64_t row = task * rows_per_task; row < end; ++row)
            prepare_row(input, row, x + row * x_stride);
    });
}

void linear_tile(Isa isa, const PackedMatrix& matrix, const PreparedInput& input,
                 int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end,
                 float* y, int64_t y_stride, const float* bias) {
    linear_kernels(isa).tile(matrix, input, row_begin, row_end, panel_begin, panel_end, y, y_stride,
                             bias);
}

Tiling tiling(const PackedMatrix& matrix, int64_t rows, int threads) {
    // A tile should last long enough to be worth handing out, and there should be several for each
    // thread, because another program may take a core away at any time. Bytes stand for time where
    // rows are few, rows where they are many.
    constexpr int64_t tile_bytes = 256 << 10, tile_rows = 384;
    Tiling cut;
    const int64_t panels = matrix.panels();
    const int64_t panel_bytes =
        std::max<int64_t>(1, static_cast<int64_t>(matrix.weight_bytes()) / std::max<int64_t>(1, panels));
    const int64_t fair = panels / (threads * 4);
    cut.panels_per_tile = std::max<int64_t>(4, std::min(tile_bytes / panel_bytes, fair) / 4 * 4);
    cut.panel_tiles = (panels + cut.panels_per_tile - 1) / cut.panels_per_tile;
    // Cutting rows too makes each tile read the weights again, from the cache at best.
    int64_t row_tiles = (rows + tile_rows - 1) / tile_rows;
    if (rows >= 32 && cut.panel_tiles * row_tiles < 4 * threads)
        row_tiles = std::min<int64_t>(rows / 16, (4 * threads + cut.panel_tiles - 1) / cut.panel_tiles);
    cut.rows_per_tile = row_tiles ? (rows + row_tiles - 1) / row_tiles : 0;
    cut.row_tiles = cut.rows_per_tile ? (rows + cut.rows_per_tile - 1) / cut.rows_per_tile : 0;
    return cut;
}

void linear_tile(Isa isa, const PackedMatrix& matrix, const PreparedInput& input,
                 const Tiling& cut, int64_t tile, float* y, int64_t y_stride, const float* bias) {
    const int64_t panel = tile / cut.row_tiles * cut.panels_per_tile;
    const int64_t row = tile % cut.row_tiles * cut.rows_per_tile;
    linear_tile(isa, matrix, input, row, std::min(input.rows, row + cut.rows_per_tile), panel,
                std::min(matrix.panels(), panel + cut.panels_per_tile), y, y_stride, bias);
}

void linear(ThreadPool& pool, Isa isa, const PackedMatrix& matrix, const PreparedInput& input,
            float* y, int64_t y_stride, const float* bias) {
    const Tiling cut = tiling(matrix, input.rows, pool.size());
    pool.parallel(cut.tiles(), [&](int64_t tile, int) {
        linear_tile(isa, matrix, input, cut, tile, y, y_stride, bias);
    });
}

void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
    const int64_t panel = output / panel_outputs, lane = output % panel_outputs;
    const int64_t inputs = matrix.inputs;
    const uint8_t* weight =
        static_cast<const uint8_t*>(matrix.weight) + matrix.weight_bytes() / matrix.panels() * panel;
    switch (matrix.kind) {
        case Kind::fp32:
            for (int64_t k = 0; k < inputs; ++k)
                std::memcpy(row + k, weight + (k * panel_outputs + lane) * 4, 4);
            return;
        case Kind::bf16:
            for (int64_t k = 0; k < inputs; ++k) {
                uint16_t half;
                std::memcpy(&half, weight + (k / 2 * panel_outputs + lane) * 4 + k % 2 * 2, 2);
                row[k] = from_bits(static_cast<uint32_t>(half) << 16);
            }
            return;
        case Kind::int8: {
            const int64_t groups = (inputs + int8_group - 1) / int8_group;
            for (int64_t g = 0; g < groups; ++g) {
                const int64_t at = (panel * groups + g) * panel_outputs + lane;
                const float scale = matrix.group
                                        ? from_half(static_cast<const uint16_t*>(matrix.scale) + at)
                                        : static_cast<const float*>(matrix.scale)[output];
                float values[int8_group];
                for (int64_t i = 0; i < int8_group; ++i) {
                    const int64_t k = g * int8_group + i;
                    values[i] = (weight[(k / 4 * panel_outputs + lane) * 4 + k % 4] - 128) * scale;
                }
                if (matrix.group) rotate_back(values);
                const int64_t count = std::min(int8_group, inputs - g * int8_group);
                std::memcpy(row + g * int8_group, values, sizeof(float) * count);
            }
            return;
        }
        case Kind::int4: {
            const int64_t groups = inputs / matrix.group;
            for (int64_t k = 0; k < inputs; ++k) {
                const int64_t at = (panel * groups + k / matrix.group) * panel_outputs + lane;
                const uint8_t both = weight[(k / 8 * panel_outputs + lane) * 4 + k % 4];
                const int code = k % 8 < 4 ? both & 15 : both >> 4;
                const int zero = matrix.zero ? static_cast<const uint8_t*>(matrix.zero)[at] : 8;
                row[k] = (code - zero) * from_half(static_cast<const uint16_t*>(matrix.scale) + at);
            }
            return;
        }
        default:
            return unpack_block_row(matrix, output, row);
    }
}

}  // namespace ockham
