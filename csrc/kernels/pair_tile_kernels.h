// The products of bf16 matrices on tiles: multiply_bf16() of tiles.h. Included by csrc/isa/amx.cpp after
// tile_kernels.h.
//
// A panel is read as it lies: 32 inputs of it are 16 lines of 64 bytes, one tile. Inputs are rows of bf16
// with zeros after the last. So nothing is unpacked but the end of a panel whose inputs fill no tile.
#pragma once

#include "kernels/tiles.h"

namespace ockham::amx {

constexpr int64_t tile_inputs = 32, weight_tile_bytes = 1024, input_tile_bytes = 64;

// With more rows than two blocks, weights are read again. So many tiles of two panels are multiplied with
// all rows before the next ones are: they fit a first-level cache of 48 KB.
constexpr int64_t range_tiles = 16;

// Tiles 0 to 3: sums of a block of rows and a panel. 4 and 5: inputs of two blocks. 6 and 7: weights of two
// panels.
template <int SUMS, int INPUTS, int WEIGHTS>
OCKHAM_INLINE void multiply_pairs() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(INPUTS), "i"(WEIGHTS));
}

// Asks for weights that are read once or for the first time: a tile that waits for memory keeps all that
// comes after it waiting. Few at a time on their way to the first-level cache (NEAR bytes ahead) leave its
// ways to memory free; measured on Sapphire Rapids.
template <int64_t NEAR>
OCKHAM_INLINE void ask_for(const uint8_t* from, int64_t jump) {
    prefetch_far(from + 4096 + jump);
    prefetch(from + NEAR);
}

// What tiles do to floats, for the sums beside them: results and operands that are denormal are zero.
class Flushing {
   public:
    Flushing() : before_(_mm_getcsr()) { _mm_setcsr(before_ | flush_to_zero | denormals_are_zero); }
    ~Flushing() { _mm_setcsr(before_); }
    Flushing(const Flushing&) = delete;
    Flushing& operator=(const Flushing&) = delete;

   private:
    static constexpr unsigned denormals_are_zero = 0x40, flush_to_zero = 0x8000;
    const unsigned before_;
};

// A few rows wait for memory, and a tile of weights that is not in a cache is waited for longer than its
// lines are. So they are multiplied by avx512, in the order of tiles. A step is a tile.
struct FewRows {
    static constexpr int rows = 3, waiting_rows = 3;
    static constexpr int panels(int64_t rows) { return rows <= 2 ? 1 : 2; }
    static constexpr int64_t step_inputs = tile_inputs, step_bytes = weight_tile_bytes;

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        const int64_t lines = (tile.matrix.inputs + 1) / 2, panel_stride = lines * 64;
        const uint8_t* weights = static_cast<const uint8_t*>(tile.matrix.weight) + panel * panel_stride;
        const Jump<false, PANELS> jump(weights, panel_stride);
        weights += range.begin * step_bytes;
        const uint8_t* x = tile.values(row) + range.begin * input_tile_bytes;
        F y[ROWS][PANELS];
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                y[r][p] = range.first ? zero() : load_out(tile, row + r, panel + p);
        const I high = int_broadcast(static_cast<int32_t>(0xffff0000));
        for (int64_t step = range.begin; step < range.end; ++step) {
            F even[ROWS][PANELS], odd[ROWS][PANELS];
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r)
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) even[r][p] = odd[r][p] = zero();
            const int64_t left = lines - step * 16, count = left < 16 ? left : 16;
            const int64_t ahead = jump.at(weights);
#pragma GCC unroll 1  // several lines' requests at once would keep each other waiting
            for (int64_t line = 0; line < count; ++line, weights += 64, x += 4) {
                F even_weights[PANELS], odd_weights[PANELS];
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) {
                    const uint8_t* from = weights + p * panel_stride;
                    ask_for<512>(from, ahead);
                    const PairWeights both = pair_weights(from);
                    even_weights[p] = as_float(_mm512_slli_epi32(both, 16));
                    odd_weights[p] = as_float(_mm512_and_si512(both, high));
                }
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r) {
                    const Pair both = pair(x + r * tile.row_bytes);
                    const F even_x = as_float(_mm512_slli_epi32(both, 16));
                    const F odd_x = as_float(_mm512_and_si512(both, high));
                    OCKHAM_UNROLL
                    for (int p = 0; p < PANELS; ++p) {
                        even[r][p] = fma(even_x, even_weights[p], even[r][p]);
                        odd[r][p] = fma(odd_x, odd_weights[p], odd[r][p]);
                    }
                }
            }
            // Tiles are filled up with zeros, whose products make a sum of -0 one of 0.
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r)
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) {
                    if (count < 16) {
                        even[r][p] = add(even[r][p], zero());
                        odd[r][p] = add(odd[r][p], zero());
                    }
                    y[r][p] = add(y[r][p], add(even[r][p], odd[r][p]));
                }
        }
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                store_result(tile, row + r, panel + p, y[r][p], range.last);
    }
};

// Where the rows of one or two blocks begin; the last begins after them.
struct BlockRows {
    int64_t begin[3];
};

// The last tile of one or two panels, filled up with zeros; null where inputs fill all tiles.
struct PanelEnds {
    const uint8_t* of[2];
};

struct alignas(64) FloatSums {
    float of[most_block_rows][panel_outputs];
};

template <int BLOCKS, int PANELS, bool ASKS>
static void pair_block(const Tile& tile, const BlockRows& rows, int64_t panel, Range range,
                       const PanelEnds& ends) {
    FloatSums sums[BLOCKS][PANELS];
    const int64_t panel_stride = (tile.matrix.inputs + 1) / 2 * 64;
    const uint8_t* weights = static_cast<const uint8_t*>(tile.matrix.weight) + panel * panel_stride;
    const Jump<false, PANELS> jump(weights, panel_stride);
    weights += range.begin * weight_tile_bytes;
    const uint8_t* x = tile.values(rows.begin[0]) + range.begin * input_tile_bytes;
    const int64_t row_bytes = tile.row_bytes, second = (rows.begin[1] - rows.begin[0]) * row_bytes;
    const auto multiply = [&](const uint8_t* of_first, const uint8_t* of_second) {
        load_tile<4>(x, row_bytes);
        load_tile<6>(of_first, 64);
        multiply_pairs<0, 4, 6>();
        if constexpr (PANELS == 2) {
            load_tile<7>(of_second, 64);
            multiply_pairs<1, 4, 7>();
        }
        if constexpr (BLOCKS == 2) {
            load_tile<5>(x + second, row_bytes);
            multiply_pairs<2, 5, 6>();
            if constexpr (PANELS == 2) multiply_pairs<3, 5, 7>();
        }
    };

    if (range.first) {
        clear_tile<0>();
        if constexpr (PANELS == 2) clear_tile<1>();
        if constexpr (BLOCKS == 2) clear_tile<2>();
        if constexpr (BLOCKS == 2 && PANELS == 2) clear_tile<3>();
    } else {
        for (int b = 0; b < BLOCKS; ++b)
            for (int64_t row = rows.begin[b]; row < rows.begin[b + 1]; ++row)
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p)
                    store(sums[b][p].of[row - rows.begin[b]], load_out(tile, row, panel + p));
        asm volatile("" : : : "memory");
        load_tile<0>(&sums[0][0], 64);
        if constexpr (PANELS == 2) load_tile<1>(&sums[0][1], 64);
        if constexpr (BLOCKS == 2) load_tile<2>(&sums[1][0], 64);
        if constexpr (BLOCKS == 2 && PANELS == 2) load_tile<3>(&sums[1][1], 64);
    }
    const int64_t whole = range.end - (range.last && ends.of[0] ? 1 : 0);
    for (int64_t i = range.begin; i < whole; ++i) {
        if constexpr (ASKS) {
            const int64_t ahead = jump.at(weights);
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                OCKHAM_UNROLL
                for (int line = 0; line < 16; ++line)
                    ask_for<weight_tile_bytes>(weights + p * panel_stride + line * 64, ahead);
        }
        multiply(weights, weights + panel_stride);
        weights += weight_tile_bytes;
        x += input_tile_bytes;
    }
    if (whole < range.end) multiply(ends.of[0], ends.of[1]);

    store_tile<0>(sums[0][0].of);
    if constexpr (PANELS == 2) store_tile<1>(sums[0][1].of);
    if constexpr (BLOCKS == 2) store_tile<2>(sums[1][0].of);
    if constexpr (BLOCKS == 2 && PANELS == 2) store_tile<3>(sums[1][1].of);
    for (int b = 0; b < BLOCKS; ++b)
        for (int64_t row = rows.begin[b]; row < rows.begin[b + 1]; ++row)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                store_result(tile, row, panel + p, load(sums[b][p].of[row - rows.begin[b]]), range.last);
}

using PairBlock = void (*)(const Tile&, const BlockRows&, int64_t panel, Range, const PanelEnds&);

// [blocks - 1][panels - 1]
template <bool ASKS>
struct PairBlocks {
    static constexpr PairBlock table[2][2] = {{pair_block<1, 1, ASKS>, pair_block<1, 2, ASKS>},
                                              {pair_block<2, 1, ASKS>, pair_block<2, 2, ASKS>}};
};

void multiply_bf16(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
                   int64_t y_stride, const float* bias) {
    const int64_t row_begin = area.row_begin, rows = area.row_end - row_begin;
    if (rows <= 0) return;
    const Flushing flushing;
    if (rows <= FewRows::rows) return walk<FewRows>(matrix, input, area, y, y_stride, bias, 1);
    const Tile tile{matrix, input, input.form.row_bytes(), y, y_stride, bias};
    // Blocks of nearly equal numbers of rows: see walk(). A smaller one multiplies the row after it too.
    const int64_t blocks = (rows + most_block_rows - 1) / most_block_rows;
    const Configured configured(TileShapes((rows + blocks - 1) / blocks, 6));
    const int64_t tiles = used_steps(tile, tile_inputs, 1);
    int64_t range_length = tiles;
    if (blocks > 2) {
        const int64_t near = (tiles + range_tiles / 2) / range_tiles, ranges = near ? near : 1;
        range_length = (tiles + ranges - 1) / ranges;
    }
    const int64_t at_once = blocks == 1 ? 1 : 2;
    alignas(64) uint8_t padded[2][weight_tile_bytes];
    const int64_t rest = tiles * tile_inputs > matrix.inputs ? matrix.inputs % tile_inputs : 0;
    const int64_t rest_bytes = (rest + 1) / 2 * 64;
    const int64_t panel_stride = (matrix.inputs + 1) / 2 * 64;
    if (rest) __builtin_memset(padded, 0, sizeof padded);
    const auto first_row = [&](int64_t block) { return row_begin + rows * block / blocks; };
    for (int64_t panel = area.panel_begin; panel < area.panel_end; panel += at_once) {
        const int64_t left = area.panel_end - panel, panels = left < at_once ? left : at_once;
        PanelEnds ends{};
        for (int64_t p = 0; rest && p < panels; ++p) {
            const uint8_t* next = static_cast<const uint8_t*>(matrix.weight) + (panel + p + 1) * panel_stride;
            __builtin_memcpy(padded[p], next - rest_bytes, rest_bytes);
            ends.of[p] = padded[p];
        }
        for (int64_t begin = 0; begin < tiles; begin += range_length) {
            const int64_t end = begin + range_length < tiles ? begin + range_length : tiles;
            const Range range{begin, end, begin == 0, end == tiles};
            for (int64_t block = 0; block < blocks; block += 2) {
                const int64_t taken = block + 2 <= blocks ? 2 : 1;
                // Only the first rows find weights that were not read just before.
                const auto& table = block == 0 ? PairBlocks<true>::table : PairBlocks<false>::table;
                const BlockRows of{{first_row(block), first_row(block + 1),
                                    taken == 2 ? first_row(block + 2) : first_row(block + 1)}};
                table[taken - 1][panels - 1](tile, of, panel, range, ends);
            }
        }
    }
}

// A product of tiles of bf16 without its memory.
static double probe_pair_tiles(int64_t rounds, float* sink) {
    const Configured configured(TileShapes(16, 6));
    clear_tile<0>();
    clear_tile<1>();
    clear_tile<2>();
    clear_tile<3>();
    clear_tile<4>();
    clear_tile<6>();
    for (int64_t round = 0; round < rounds; ++round) {
        multiply_pairs<0, 4, 6>();
        multiply_pairs<1, 4, 6>();
        multiply_pairs<2, 4, 6>();
        multiply_pairs<3, 4, 6>();
    }
    FloatSums sums;
    store_tile<0>(sums.of);
    sink[0] += sums.of[0][0];
    return 4.0 * 2 * 16 * 16 * 32 * static_cast<double>(rounds);
}

}  // namespace ockham::amx
