// bf16 weights of which those that are zero are not stored: see sparse.h. In `scale` there is nothing but the
// starts. Inputs are those of bf16, and products are bf16's to the bit, as they are where amx does not sum
// (kinds/bf16.cpp): a zero adds nothing.
#include "kernels/linear.h"
#include "kinds/sparse.h"

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/sparse_kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

struct Sparse16 : Bf16Block {
    static constexpr int value_bytes = 2;
    static constexpr int64_t unit_scale_bytes = 0;
#if defined(__AVX512F__)
    // A sum waits for the one before it longer than a register takes to expand.
    static constexpr int panels(int64_t) { return 2; }
#endif

    template <int ROWS, int PANELS, class Source>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range, const Units<Source>& units) {
        constexpr bool waits = ROWS <= waiting_rows;
        const uint8_t* x = tile.values(row) + range.begin * sparse_inputs * 2;
        F sum[ROWS][PANELS];
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                sum[r][p] = range.first ? zero() : load_out(tile, row + r, panel + p);
        for (int64_t unit = range.begin; unit < range.end; ++unit) {
            Source first = units.at(panel, 0, unit), second = units.at(panel + PANELS - 1, PANELS - 1, unit);
            first.template ask_for_masks<waits>();
            if (PANELS == 2) second.template ask_for_masks<waits>();
            const int64_t left = tile.matrix.inputs - unit * sparse_inputs;  // rows end with the last input
            const int64_t pairs = left < sparse_inputs ? (left + 1) / 2 : sparse_inputs / 2;
            for (int64_t i = 0; i < pairs; ++i, x += 4) {
                PairWeights w[PANELS];
                w[0] = first.template next<waits>();
                if (PANELS == 2) w[PANELS - 1] = second.template next<waits>();
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r) {
                    const Pair wide = pair(x + r * tile.row_bytes);
                    OCKHAM_UNROLL
                    for (int p = 0; p < PANELS; ++p) sum[r][p] = dot(sum[r][p], w[p], wide);
                }
            }
        }
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                store_result(tile, row + r, panel + p, sum[r][p], range.last);
    }
};

void sparse16_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
                   int64_t y_stride, const float* bias) {
    multiply_sparse<Sparse16>(matrix, input, area, y, y_stride, bias);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include "isa/each.h"
#include "kernels/halves.h"
#include "kernels/inputs.h"
#include "kinds/sparse_kind.h"

namespace ockham {

OCKHAM_DECLARE(TileFunction sparse16_tile);

namespace {

struct Sparse16 {
    static constexpr const char* name = "sparse16";
    static constexpr int value_bytes = 2;
    static constexpr int64_t unit_scale_bytes = 0;
    static uint16_t stored(uint16_t value) { return value; }
    static int64_t row_inputs(const PackedMatrix& matrix) { return matrix.inputs; }
    static void lay_scales(const PackedMatrix&, const uint8_t* const*, uint8_t*) {}
};
using Kind = SparseKind<Sparse16>;

std::vector<RowField> fields(const PackedMatrix& matrix) { return {{"weight", matrix.inputs * 2}}; }

InputForm input(const PackedMatrix& matrix) { return {&bf16_input, matrix.inputs}; }

void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
    std::memset(row, 0, sizeof(float) * matrix.inputs);
    Kind::each_value(matrix, output, [&](int64_t k, const uint8_t* value) {
        uint16_t half;
        std::memcpy(&half, value, 2);
        row[k] = from_bits(static_cast<uint32_t>(half) << 16);
    });
}

const LinearKind kind = {Sparse16::name,
                         Kind::check,
                         Kind::arrays,
                         fields,
                         input,
                         Kind::pack_panel,
                         unpack_row,
                         OCKHAM_EACH_ISA(sparse16_tile),
                         {},
                         bits_of,
                         &Kind::ragged};
const AddedKind added{kind};

}  // namespace

}  // namespace ockham

#endif
