// weight: float [P][K][16]. y = fma(x[k], w[k], y) for k = 0, 1, ... from y = 0 (portable code rounds the
// product first).
#include "kernels/linear.h"

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kernels/linear_kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// A step is one k.
struct Fp32 : Fp32Block {
    static constexpr int64_t step_inputs = 1, step_bytes = 64;

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        const int64_t panel_stride = tile.matrix.inputs * 64;
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
        for (int64_t k = range.begin; k < range.end; ++k, weight += 64, x += 4) {
            F w[PANELS];
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                const uint8_t* from = weight + p * panel_stride;
                ask_ahead<ROWS <= waiting_rows>(from, jump.at(weight));
                w[p] = load(reinterpret_cast<const float*>(from));
            }
            OCKHAM_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                float value;
                __builtin_memcpy(&value, x + r * tile.row_bytes, 4);
                const F wide = broadcast(value);
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p) sum[r][p] = fma(wide, w[p], sum[r][p]);
            }
        }
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                store_result(tile, row + r, panel + p, sum[r][p], range.last);
    }
};

void fp32_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
               int64_t y_stride, const float* bias) {
    walk<Fp32>(matrix, input, area, y, y_stride, bias, 1);
}

void prepare_fp32(const PreparedInput& input, int64_t row, const float* x) {
    __builtin_memcpy(input.values + row * input.form.row_bytes(), x, input.form.inputs * 4);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include "isa/each.h"
#include "kinds/kind.h"
#include "kinds/lay_out.h"

namespace ockham {

OCKHAM_DECLARE(TileFunction fp32_tile);
OCKHAM_DECLARE(PrepareFunction prepare_fp32);

namespace {

const InputKind fp32_input = {4, 0, OCKHAM_EACH_ISA(prepare_fp32)};

void check(const PackedMatrix&, bool) {}

std::vector<PackedArray> arrays(const PackedMatrix& matrix, bool) {
    return {{"weight", "float32", {matrix.panels(), matrix.inputs, panel_outputs, 1}}};
}

std::vector<RowField> fields(const PackedMatrix& matrix) { return {{"weight", matrix.inputs * 4}}; }

InputForm input(const PackedMatrix& matrix) { return {&fp32_input, matrix.inputs}; }

void pack_panel(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to) {
    lay_words(fields[0], matrix.inputs * 4, matrix.inputs, to.weight,
              [](const uint8_t* row, int64_t unit) { return four(row + unit * 4); });
}

void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
    const float* weight = static_cast<const float*>(matrix.weight) +
                          output / panel_outputs * matrix.inputs * panel_outputs;
    for (int64_t k = 0; k < matrix.inputs; ++k)
        row[k] = weight[k * panel_outputs + output % panel_outputs];
}

const LinearKind kind = {"fp32", check, arrays, fields, input, pack_panel, unpack_row,
                         OCKHAM_EACH_ISA(fp32_tile)};
const AddedKind added{kind};

}  // namespace

}  // namespace ockham

#endif
