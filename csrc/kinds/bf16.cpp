// weight: bf16 [P][ceil(K / 2)][16][2]. x is rounded to bf16 (nearest even). For each pair of k:
// y = fma(x[k + 1], w[k + 1], y), then y = fma(x[k], w[k], y), from y = 0. That is what vdpbf16ps does
// (checked on Zen 4), which also takes denormals of either type for zero; only with those do other
// instruction sets differ. (Products of bf16 are exact in fp32.)
// On amx, K is cut into blocks of 32, the last one filled up with zeros. Of each block
// even = fma(x[k], w[k], even) for k = 0, 2, ... and odd = fma(x[k], w[k], odd) for k = 1, 3, ..., both from
// 0, then y = y + (even + odd), from y = 0. That is what tdpbf16ps does (Intel's manual; checked on
// Sapphire Rapids). Denormal operands and results of each operation are 0, of their own sign, also where
// the bias is added.
#include "kernels/linear.h"

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kernels/linear_kernels.h"
#include "kernels/tiles.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// A step is two k.
struct Bf16 : Bf16Block {
    static constexpr int64_t step_inputs = 2, step_bytes = 64;

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        const int64_t panel_stride = (tile.matrix.inputs + 1) / 2 * 64;
        const uint8_t* weight = static_cast<const uint8_t*>(tile.matrix.weight) + panel * panel_stride;
        const Jump<(ROWS <= waiting_rows), PANELS> jump(weight, panel_stride);
        weight += range.begin * 64;
        const uint8_t* x = tile.values(row) + range.begin * 4;
        F sum[ROWS][PANELS];
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                sum[r][p] = range.first ? zero() : load_out(tile, row + r, panel + p);
        for (int64_t step = range.begin; step < range.end; ++step, weight += 64, x += 4) {
            PairWeights w[PANELS];
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                const uint8_t* from = weight + p * panel_stride;
                ask_ahead<ROWS <= waiting_rows>(from, jump.at(weight));
                w[p] = pair_weights(from);
            }
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const Pair wide = pair(x + r * tile.row_bytes);
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) sum[r][p] = dot(sum[r][p], w[p], wide);
            }
        }
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                store_result(tile, row + r, panel + p, sum[r][p], range.last);
    }
};

void bf16_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    walk<Bf16>(matrix, input, area, y, y_stride, bias, 1);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#ifdef OCKHAM_TILES

namespace ockham::amx {

void bf16_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    multiply_bf16(matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::amx

#endif

#else

#include "isa/each.h"
#include "kernels/halves.h"
#include "kernels/inputs.h"
#include "kinds/kind.h"
#include "kinds/lay_out.h"

namespace ockham {

OCKHAM_DECLARE_TILES(TileFunction bf16_tile);

namespace {

int64_t pairs(const PackedMatrix& matrix) { return (matrix.inputs + 1) / 2; }

void check(const PackedMatrix&, bool) {}

std::vector<PackedArray> arrays(const PackedMatrix& matrix, bool) {
    return {{"weight", "bfloat16", {matrix.panels(), pairs(matrix), panel_outputs, 2}}};
}

std::vector<RowField> fields(const PackedMatrix& matrix) { return {{"weight", matrix.inputs * 2}}; }

InputForm input(const PackedMatrix& matrix) { return {&bf16_input, matrix.inputs}; }

void pack_panel(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to) {
    const int64_t whole = matrix.inputs / 2;
    lay_words(fields[0], matrix.inputs * 2, pairs(matrix), to.weight,
              [whole](const uint8_t* row, int64_t unit) {
                  return unit < whole ? four(row + unit * 4)
                                      : static_cast<uint32_t>(row[unit * 4] | row[unit * 4 + 1] << 8);
              });
}

void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
    const uint8_t* weight = static_cast<const uint8_t*>(matrix.weight) +
                            output / panel_outputs * pairs(matrix) * panel_outputs * 4;
    for (int64_t k = 0; k < matrix.inputs; ++k) {
        uint16_t half;
        std::memcpy(&half, weight + (k / 2 * panel_outputs + output % panel_outputs) * 4 + k % 2 * 2, 2);
        row[k] = from_bits(static_cast<uint32_t>(half) << 16);
    }
}

// Tiles add up in an order of their own.
Isa product_bits(Isa isa) { return isa; }

const LinearKind kind = {"bf16",     check,
                         arrays,     fields,
                         input,      pack_panel,
                         unpack_row, OCKHAM_EACH_TILES(bf16_tile),
                         {},         product_bits};
const AddedKind added{kind};

}  // namespace

}  // namespace ockham

#endif
