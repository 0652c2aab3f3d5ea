// Products of each head's part of a row with a matrix of that head.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/linear.h"
#include "kernels/rows.h"
#include "run.h"

namespace ockham::ops {

// y[row * y_stride + head * y_head ...] = matrices[head] times at(row, head), for `rows` rows. All
// heads' tiles are in one loop, so that small matrices keep all threads busy.
template <class At>
void head_products(Run& run, const std::vector<PackedMatrix>& matrices, int64_t rows, At at,
                   float* y, int64_t y_stride, int64_t y_head) {
    const auto heads = static_cast<int64_t>(matrices.size());
    const auto padded_bytes = [&](const PackedMatrix& matrix) {
        return (static_cast<int64_t>(input_form(matrix).bytes(rows)) + 63) / 64 * 64;
    };
    int64_t bytes = 0;
    for (const PackedMatrix& matrix : matrices) bytes += padded_bytes(matrix);
    uint8_t* memory = run.activations->prepared.take<uint8_t>(bytes);
    std::vector<PreparedInput> inputs;
    std::vector<Tiling> cuts;
    std::vector<int64_t> firsts;  // tiles
    int64_t tiles = 0;
    for (const PackedMatrix& matrix : matrices) {
        inputs.emplace_back(input_form(matrix), rows, memory);
        memory += padded_bytes(matrix);
        cuts.push_back(tiling(matrix, rows, run.pool.size()));
        firsts.push_back(tiles);
        tiles += cuts.back().tiles();
    }
    for_rows(run.pool, rows * heads, matrices.front().inputs, [&](int64_t i, int) {
        prepare_row(run.isa, inputs[i / rows], i % rows, at(i % rows, i / rows));
    });
    run.pool.parallel(tiles, [&](int64_t tile, int) {
        const int64_t head =
            std::upper_bound(firsts.begin(), firsts.end(), tile) - firsts.begin() - 1;
        linear_tile(run.isa, matrices[head], inputs[head], cuts[head], tile - firsts[head],
                    y + head * y_head, y_stride, nullptr);
    });
}

}  // namespace ockham::ops
