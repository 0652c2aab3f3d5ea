#include "kernels/linear.h"

#include <algorithm>

#include "kernels/threads.h"
#include "kinds/kind.h"

namespace ockham {

namespace {

int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

int64_t InputForm::row_bytes() const { return round_up(inputs * kind->value_bytes, 64); }

int64_t InputForm::offset_words() const { return groups() * kind->offset_words; }

size_t InputForm::bytes(int64_t rows) const {
    size_t total = static_cast<size_t>(rows) * row_bytes();
    if (kind->offset_words)
        total += round_up(rows * groups() * 4, 64) + round_up(rows * offset_words() * 4, 64);
    return total;
}

InputForm input_form(const PackedMatrix& matrix) { return matrix.kind->input(matrix); }

PreparedInput::PreparedInput(const InputForm& form, int64_t rows, void* memory)
    : form(form), rows(rows), values(static_cast<uint8_t*>(memory)), used(form.inputs) {
    if (!form.kind->offset_words) return;
    uint8_t* after = values + rows * form.row_bytes();
    scales = reinterpret_cast<float*>(after);
    offsets = reinterpret_cast<int32_t*>(after + round_up(rows * form.groups() * 4, 64));
}

void prepare_row(Isa isa, const PreparedInput& input, int64_t row, const float* x) {
    input.form.kind->prepare[static_cast<int>(isa)](input, row, x);
}

void prepare(ThreadPool& pool, Isa isa, const PreparedInput& input, const float* x,
             int64_t x_stride) {
    // A few rows are quantised faster than another thread is asked to help.
    constexpr int64_t values_per_task = 1 << 14;
    PrepareFunction* const prepare_row = input.form.kind->prepare[static_cast<int>(isa)];
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
    matrix.kind->tile[static_cast<int>(isa)](
        matrix, input, {row_begin, row_end, panel_begin, panel_end}, y, y_stride, bias);
}

Tiling tiling(const PackedMatrix& matrix, int64_t rows, int threads) {
    return tiling(matrix, matrix.panels(), rows, threads);
}

Tiling tiling(const PackedMatrix& matrix, int64_t panels, int64_t rows, int threads) {
    // A tile should last long enough to be worth handing out, and there should be several for each
    // thread, because another program may take a core away at any time. Bytes stand for time where
    // rows are few, rows where they are many.
    constexpr int64_t tile_bytes = 256 << 10, tile_rows = 384;
    Tiling cut;
    const int64_t panel_bytes = std::max<int64_t>(
        1, static_cast<int64_t>(matrix.weight_bytes) / std::max<int64_t>(1, matrix.panels()));
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

std::vector<Panels> leading_panels(const PackedMatrix& matrix, int64_t first, LeadingOutputs leading) {
    if (leading.count == 0) return {{0, matrix.panels()}};
    std::vector<Panels> found;
    const int64_t last = first + matrix.outputs;
    for (int64_t begin = first / leading.of * leading.of; begin < last; begin += leading.of) {
        const int64_t from = std::max(begin, first), until = std::min(begin + leading.count, last);
        if (from >= until) continue;
        Panels panels{(from - first) / panel_outputs, (until - first + panel_outputs - 1) / panel_outputs};
        if (!found.empty()) panels.begin = std::max(panels.begin, found.back().end);
        if (panels.begin < panels.end) found.push_back(panels);
    }
    return found;
}

void linear(ThreadPool& pool, Isa isa, const PackedMatrix& matrix, const PreparedInput& input,
            const std::vector<Panels>& panels, float* y, int64_t y_stride, const float* bias) {
    struct Part {
        Panels panels;
        Tiling cut;
        int64_t first;  // of its tiles among all
    };
    std::vector<Part> parts;
    int64_t tiles = 0;
    for (const Panels& each : panels) {
        parts.push_back({each, tiling(matrix, each.end - each.begin, input.rows, pool.size()), tiles});
        tiles += parts.back().cut.tiles();
    }
    pool.parallel(tiles, [&](int64_t tile, int) {
        size_t at = parts.size() - 1;
        while (parts[at].first > tile) --at;
        const auto& [within, cut, first] = parts[at];
        const int64_t panel = within.begin + (tile - first) / cut.row_tiles * cut.panels_per_tile;
        const int64_t row = (tile - first) % cut.row_tiles * cut.rows_per_tile;
        linear_tile(isa, matrix, input, row, std::min(input.rows, row + cut.rows_per_tile), panel,
                    std::min(within.end, panel + cut.panels_per_tile), y, y_stride, bias);
    });
}

void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
    matrix.kind->unpack_row(matrix, output, row);
}

}  // namespace ockham
