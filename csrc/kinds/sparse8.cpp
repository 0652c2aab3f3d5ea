// int8 weights around zero with a scale for each group of 64 inputs, of which those that are zero are not
// stored: see sparse.h. Values: uint8 w + 128. scale, per panel: fp16 [G][16] before the starts.
// x is quantised by row and group (inputs.h). For each group: y = fma(float(sum of a * w),
// scale_x * scale_w, y) from y = 0 (portable code rounds the product first). Nothing is rotated, as int8 has
// it: the zeros of another basis are others.
#include "kernels/linear.h"
#include "kinds/sparse.h"

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kinds/sparse_kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

struct Sparse8 : QuadBlock {
    static constexpr int value_bytes = 1;
    static constexpr int64_t unit_scale_bytes = panel_outputs * 2;

    template <int ROWS, int PANELS, class Source>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range, const Units<Source>& units) {
        constexpr bool waits = ROWS <= waiting_rows;
        const int64_t groups = tile.input.form.groups();
        const int64_t record_bytes = groups * unit_scale_bytes + (groups + 1) * 4;
        const uint8_t* half = static_cast<const uint8_t*>(tile.matrix.scale) + panel * record_bytes +
                              range.begin * unit_scale_bytes;
        const uint8_t* x = tile.values(row) + range.begin * sparse_inputs;
        const float* of_x = tile.input.scales + row * groups + range.begin;
        const int32_t* offset = tile.input.offsets + row * groups + range.begin;
        Partial<ROWS, PANELS> y(tile, row, panel, range.first);
        for (int64_t group = range.begin; group < range.end; ++group, ++of_x, ++offset) {
            I sum[ROWS][PANELS];
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const I start = int_broadcast(offset[r * groups]);
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) sum[r][p] = start;
            }
            Source first = units.at(panel, 0, group), second = units.at(panel + PANELS - 1, PANELS - 1, group);
            first.template ask_for_masks<waits>();
            if (PANELS == 2) second.template ask_for_masks<waits>();
            for (int64_t quad = 0; quad < sparse_inputs / 4; ++quad, x += 4) {
                QuadWeights w[PANELS];
                w[0] = first.template next<waits>();
                if (PANELS == 2) w[PANELS - 1] = second.template next<waits>();
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r) dot_quads<PANELS>(sum[r], w, x + r * tile.row_bytes);
            }
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                uint16_t scales[panel_outputs];
                __builtin_memcpy(scales, half + p * record_bytes, sizeof scales);
                prefetch(half + p * record_bytes + 8 * unit_scale_bytes);
                const F of_weight = from_half(scales);
                OCKHAM_UNROLL
                for (int r = 0; r < ROWS; ++r)
                    y.add(r, p, to_float(sum[r][p]), mul(broadcast(of_x[r * groups]), of_weight));
            }
            half += unit_scale_bytes;
        }
        y.finish(tile, row, panel, range.last);
    }
};

void sparse8_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
                  int64_t y_stride, const float* bias) {
    multiply_sparse<Sparse8>(matrix, input, area, y, y_stride, bias);
}

void sparse8_quantise(const PackedMatrix& matrix, const float* row, uint8_t* codes, uint16_t* scales) {
    for (int64_t begin = 0; begin < matrix.inputs; begin += sparse_inputs, codes += sparse_inputs) {
        const int64_t rest = matrix.inputs - begin;
        alignas(64) float values[sparse_inputs] = {};
        __builtin_memcpy(values, row + begin, (rest < sparse_inputs ? rest : sparse_inputs) * sizeof(float));
        float most = 0;
        for (const float value : values) {
            const float magnitude = __builtin_fabsf(value);
            most = magnitude > most ? magnitude : most;
        }
        const uint16_t half = to_half(most / 127.0f);
        const float wide = half_value(half);
        const F inverse = broadcast(wide == 0 ? 0.0f : 1.0f / wide);
        const I least = int_broadcast(-127), largest = int_broadcast(127);
        *scales++ = half;
        for (int64_t k = 0; k < sparse_inputs; k += 16) {
            const I value = to_int(mul(load(values + k), inverse));
            store_int8(reinterpret_cast<int8_t*>(codes) + k, int_min(int_max(value, least), largest));
        }
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include "isa/each.h"
#include "kernels/halves.h"
#include "kernels/inputs.h"
#include "kinds/sparse_kind.h"

namespace ockham {

OCKHAM_DECLARE(TileFunction sparse8_tile);
OCKHAM_DECLARE(QuantiseFunction sparse8_quantise);

namespace {

struct Sparse8 {
    static constexpr const char* name = "sparse8";
    static constexpr int value_bytes = 1;
    static constexpr int64_t unit_scale_bytes = panel_outputs * 2;
    static uint16_t stored(uint16_t code) { return code ^ 128; }
    static int64_t row_inputs(const PackedMatrix& matrix) { return units_of(matrix) * sparse_inputs; }
    static void lay_scales(const PackedMatrix& matrix, const uint8_t* const* fields, uint8_t* to) {
        lay_items(fields[1], units_of(matrix) * 2, units_of(matrix), 2, to);
    }
};
using Kind = SparseKind<Sparse8>;

std::vector<RowField> fields(const PackedMatrix& matrix) {
    return {{"codes", Sparse8::row_inputs(matrix)}, {"scales", units_of(matrix) * 2}};
}

InputForm input(const PackedMatrix& matrix) { return {&quantised_input, matrix.inputs, sparse_inputs, 128}; }

void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
    std::memset(row, 0, sizeof(float) * matrix.inputs);
    const uint8_t* const record =
        static_cast<const uint8_t*>(matrix.scale) + output / panel_outputs * Kind::record_bytes(matrix);
    Kind::each_value(matrix, output, [&](int64_t k, const uint8_t* value) {
        uint16_t half;
        std::memcpy(&half, record + (k / sparse_inputs * panel_outputs + output % panel_outputs) * 2, 2);
        row[k] = static_cast<float>(*value - 128) * from_half(&half);
    });
}

const LinearKind kind = {Sparse8::name,
                         Kind::check,
                         Kind::arrays,
                         fields,
                         input,
                         Kind::pack_panel,
                         unpack_row,
                         OCKHAM_EACH_ISA(sparse8_tile),
                         OCKHAM_EACH_ISA(sparse8_quantise),
                         bits_of,
                         &Kind::ragged};
const AddedKind added{kind};

}  // namespace

}  // namespace ockham

#endif
