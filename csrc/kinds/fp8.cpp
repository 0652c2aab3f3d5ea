// Floats of 8 bits (E4M3) with a scale (fp32) for each row and `group` inputs, or for each row where
// group is 0. weight: [P][ceil(K / 4)][4][16] bytes, scale: float [P][ceil(K / group)][16].
// y = fma(x[k], w[k], y) for k = 0, 1, ... from y = 0, where w = code * scale, rounded to fp32 (portable
// code rounds the product with x too): the bits of the kind fp32 with the same weights.
#include "kernels/linear.h"

#ifdef OCKHAM_ISA_NAMESPACE

#include OCKHAM_SIMD

#include "kernels/linear_kernels.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

// 16 codes as floats, divided by 256. A code moved to the left by 7 bits, its sign by one more, is the
// fp16 of such a value, also where it is subnormal.
#if defined(__AVX512F__)
OCKHAM_INLINE F fp8_values(const uint8_t* from) {
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return _mm512_cvtph_ps(
        _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbfff))));
}
#elif defined(__AVX2__)
OCKHAM_INLINE F fp8_values(const uint8_t* from) {
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    const __m256i halves =
        _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbfff)));
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}
#else
struct Fp8Values {
    float of[256];
    constexpr Fp8Values() : of() {
        for (int code = 0; code < 256; ++code) {
            const int exponent = code >> 3 & 15, mantissa = code & 7;
            // (8 + m) / 8 * 2^(e - 7), or m / 8 * 2^-6; over 256.
            float value = static_cast<float>(exponent ? 8 + mantissa : mantissa);
            for (int e = exponent ? exponent : 1; e < 18; ++e) value *= 0.5f;
            of[code] = code & 128 ? -value : value;
        }
    }
};
static constexpr Fp8Values fp8_table;
OCKHAM_INLINE F fp8_values(const uint8_t* from) {
    float values[16];
    for (int i = 0; i < 16; ++i) values[i] = fp8_table.of[from[i]];
    return load(values);
}
#endif

// A step is four k: one line of each panel.
struct Fp8 : Fp32Block {
    static constexpr int64_t step_inputs = 4, step_bytes = 64;

    template <int ROWS, int PANELS>
    static void block(const Tile& tile, int64_t row, int64_t panel, Range range) {
        const int64_t inputs = tile.matrix.inputs;
        const int64_t group = tile.matrix.group ? tile.matrix.group : inputs;
        const int64_t panel_scales = (inputs + group - 1) / group * panel_outputs;
        const float* scale = static_cast<const float*>(tile.matrix.scale) + panel * panel_scales;
        const int64_t panel_stride = (inputs + 3) / 4 * 64;
        const uint8_t* weight = static_cast<const uint8_t*>(tile.matrix.weight) + panel * panel_stride;
        const Jump<(ROWS <= waiting_rows), PANELS> jump(weight, panel_stride);
        weight += range.begin * 64;
        const uint8_t* x = tile.values(row) + range.begin * 16;
        F sum[ROWS][PANELS];
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                sum[r][p] = range.first ? zero() : load_out(tile, row + r, panel + p);
        const int64_t end = range.end * 4 < inputs ? range.end * 4 : inputs;
        for (int64_t k = range.begin * 4; k < end;) {
            const int64_t next = (k / group + 1) * group, stop = next < end ? next : end;
            F by[PANELS];
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                by[p] = mul(load(scale + p * panel_scales + k / group * panel_outputs), broadcast(256.0f));
            for (; k + 4 <= stop; k += 4, weight += 64, x += 16) {
                OCKHAM_UNROLL
                for (int p = 0; p < PANELS; ++p)
                    ask_ahead<ROWS <= waiting_rows>(weight + p * panel_stride, jump.at(weight));
                OCKHAM_UNROLL
                for (int i = 0; i < 4; ++i)
                    add_input<ROWS, PANELS>(tile, weight + i * 16, panel_stride, x + i * 4, by, sum);
            }
            for (; k < stop; ++k, weight += 16, x += 4)
                add_input<ROWS, PANELS>(tile, weight, panel_stride, x, by, sum);
        }
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r)
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p)
                store_result(tile, row + r, panel + p, sum[r][p], range.last);
    }

    // One k.
    template <int ROWS, int PANELS>
    OCKHAM_INLINE void add_input(const Tile& tile, const uint8_t* weight, int64_t panel_stride,
                                 const uint8_t* x, const F (&by)[PANELS], F (&sum)[ROWS][PANELS]) {
        F w[PANELS];
        OCKHAM_UNROLL
        for (int p = 0; p < PANELS; ++p) w[p] = mul(fp8_values(weight + p * panel_stride), by[p]);
        OCKHAM_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            float value;
            __builtin_memcpy(&value, x + r * tile.row_bytes, 4);
            const F wide = broadcast(value);
            OCKHAM_UNROLL
            for (int p = 0; p < PANELS; ++p) sum[r][p] = fma(wide, w[p], sum[r][p]);
        }
    }
};

void fp8_tile(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
              int64_t y_stride, const float* bias) {
    walk<Fp8>(matrix, input, area, y, y_stride, bias, 1);
}

void prepare_fp8(const PreparedInput& input, int64_t row, const float* x) {
    __builtin_memcpy(input.values + row * input.form.row_bytes(), x, input.form.inputs * 4);
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include <stdexcept>

#include "isa/each.h"
#include "kernels/halves.h"
#include "kinds/kind.h"
#include "kinds/lay_out.h"

namespace ockham {

OCKHAM_DECLARE(TileFunction fp8_tile);
OCKHAM_DECLARE(PrepareFunction prepare_fp8);

namespace {

const InputKind fp8_input = {4, 0, OCKHAM_EACH_ISA(prepare_fp8)};

int64_t groups(const PackedMatrix& matrix) {
    return matrix.group ? (matrix.inputs + matrix.group - 1) / matrix.group : 1;
}

int64_t panel_bytes(const PackedMatrix& matrix) { return (matrix.inputs + 3) / 4 * 4 * panel_outputs; }

void check(const PackedMatrix& matrix, bool) {
    if (matrix.group < 0 || matrix.group % 4)
        throw std::invalid_argument("fp8 has groups of a multiple of 4 inputs, or none.");
}

std::vector<PackedArray> arrays(const PackedMatrix& matrix, bool) {
    const int64_t panels = matrix.panels();
    return {{"weight", "uint8", {panels, (matrix.inputs + 3) / 4, 4, panel_outputs}},
            {"scale", "float32", {panels, groups(matrix), panel_outputs}}};
}

std::vector<RowField> fields(const PackedMatrix& matrix) {
    return {{"codes", matrix.inputs}, {"scales", groups(matrix) * 4}};
}

InputForm input(const PackedMatrix& matrix) { return {&fp8_input, matrix.inputs}; }

void pack_panel(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to) {
    std::memset(to.weight, 0, panel_bytes(matrix));
    lay_items(fields[0], matrix.inputs, matrix.inputs, 1, to.weight);
    lay_items(fields[1], groups(matrix) * 4, groups(matrix), 4, to.scale);
}

// As an fp16 of the same bits, see fp8_values.
float value(uint8_t code) {
    const uint16_t half = static_cast<uint16_t>((code & 127) << 7 | (code & 128) << 8);
    return from_half(&half);
}

void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
    const int64_t panel = output / panel_outputs, lane = output % panel_outputs;
    const uint8_t* weight = static_cast<const uint8_t*>(matrix.weight) + panel * panel_bytes(matrix) + lane;
    const float* scale =
        static_cast<const float*>(matrix.scale) + panel * groups(matrix) * panel_outputs + lane;
    for (int64_t k = 0; k < matrix.inputs; ++k) {
        const int64_t group = matrix.group ? k / matrix.group : 0;
        row[k] = value(weight[k * panel_outputs]) * (scale[group * panel_outputs] * 256.0f);
    }
}

const LinearKind kind = {"fp8", check, arrays, fields, input, pack_panel, unpack_row,
                         OCKHAM_EACH_ISA(fp8_tile)};
const AddedKind added{kind};

}  // namespace

}  // namespace ockham

#endif
