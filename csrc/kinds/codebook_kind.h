// What the kinds of codebook.h share beside their kernels.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "kinds/codebook.h"
#include "kinds/kind.h"
#include "kinds/lay_out.h"
#include "kinds/spans.h"

namespace ockham {

// Spans, and for each minus codebook_zero times the sum of its values.
template <Isa ISA>
void prepare_codebook(const PreparedInput& input, int64_t row, const float* x) {
    quantise_spans<ISA>(input, row, x, input.offsets + row * input.form.offset_words());
}

inline const InputKind codebook_input = {1, 1, OCKHAM_EACH_ISA_OF(prepare_codebook)};

// `Kind` has a `name` and `bits`.
template <class Kind>
struct CodebookKind {
    static constexpr int bits = Kind::bits;

    // Where an output's 16 bytes stand among a panel's 256.
    static int64_t place(int64_t lane) { return lane % 4 * 64 + lane / 4 * 16; }

    static void check(const PackedMatrix& matrix, bool zeros) {
        if (zeros || matrix.group || matrix.inputs % codebook_unit || matrix.inputs > 1 << 16)
            throw std::invalid_argument(std::string(Kind::name) +
                                        " needs a multiple of 64 inputs, at most 65536, and has neither "
                                        "groups nor zero points.");
    }

    static std::vector<PackedArray> arrays(const PackedMatrix& matrix, bool) {
        const int64_t panels = matrix.panels();
        return {{"weight", "uint8", {panels, matrix.inputs / codebook_unit, unit_bytes(bits)}},
                {"scale", "uint8", {panels, book_bytes(matrix)}}};
    }

    static std::vector<RowField> fields(const PackedMatrix& matrix) {
        return {{"codes", matrix.inputs},
                {"levels", 1 << bits},
                {"scale", 4},
                {"columns", apart_of(matrix) * 2},
                {"extras", apart_of(matrix) * 2}};
    }

    static InputForm input(const PackedMatrix& matrix) {
        return {&codebook_input, matrix.inputs, codebook_span, codebook_zero};
    }

    static void pack_unit(const uint8_t* codes, int64_t lane, uint8_t* to) {
        uint8_t* own = to + place(lane);
        if (bits == 4) {
            for (int i = 0; i < 32; ++i) {
                const int k = i / 16 * 32 + i % 16;
                own[i / 16 * 256 + i % 16] = static_cast<uint8_t>(codes[k] | codes[k + 16] << 4);
            }
        } else {
            for (int i = 0; i < 16; ++i)
                own[i] = static_cast<uint8_t>((codes[i] & 3) | (codes[16 + i] & 3) << 2 |
                                              (codes[32 + i] & 3) << 4 | (codes[48 + i] & 3) << 6);
            uint8_t* third = to + 256 + place(lane) / 2;
            for (int i = 0; i < 8; ++i) {
                int byte = 0;
                for (int j = 0; j < 4; ++j)
                    byte |= (codes[16 * j + i] >> 2 & 1) << j | (codes[16 * j + 8 + i] >> 2 & 1) << (4 + j);
                third[i] = static_cast<uint8_t>(byte);
            }
        }
    }

    static int code_at(const uint8_t* unit, int64_t lane, int64_t k) {
        const uint8_t* own = unit + place(lane);
        if (bits == 4) return own[k / 32 * 256 + k % 16] >> (k % 32 < 16 ? 0 : 4) & 15;
        const int j = static_cast<int>(k / 16), i = static_cast<int>(k % 16);
        const uint8_t third = unit[256 + place(lane) / 2 + i % 8];
        return (own[i] >> (2 * j) & 3) | (third >> (i < 8 ? j : 4 + j) & 1) << 2;
    }

    static void pack_panel(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to) {
        const int64_t apart = apart_of(matrix);
        std::memset(to.scale, codebook_zero, table_bytes);
        for (int64_t lane = 0; lane < panel_outputs; ++lane) {
            for (int64_t unit = 0; unit < matrix.inputs / codebook_unit; ++unit)
                pack_unit(fields[0] + lane * matrix.inputs + unit * codebook_unit, lane,
                          to.weight + unit * unit_bytes(bits));
            for (int level = 0; level < 1 << bits; ++level)
                to.scale[place(lane) + level] =
                    static_cast<uint8_t>(fields[1][(lane << bits) + level] + codebook_zero);
        }
        uint8_t* behind = to.scale + table_bytes;
        std::memcpy(behind, fields[2], panel_outputs * 4);
        lay_items(fields[3], apart * 2, apart, 2, behind + panel_outputs * 4);
        lay_items(fields[4], apart * 2, apart, 2, behind + panel_outputs * 4 + apart * panel_outputs * 2);
    }

    static void unpack_row(const PackedMatrix& matrix, int64_t output, float* row) {
        const int64_t panel = output / panel_outputs, lane = output % panel_outputs;
        const int64_t units = matrix.inputs / codebook_unit, apart = apart_of(matrix);
        const uint8_t* weight =
            static_cast<const uint8_t*>(matrix.weight) + panel * units * unit_bytes(bits);
        const uint8_t* book = static_cast<const uint8_t*>(matrix.scale) + panel * book_bytes(matrix);
        const uint8_t* behind = book + table_bytes + panel_outputs * 4;
        float scale;
        std::memcpy(&scale, book + table_bytes + lane * 4, 4);
        for (int64_t k = 0; k < matrix.inputs; ++k) {
            const int code = code_at(weight + k / codebook_unit * unit_bytes(bits), lane, k % codebook_unit);
            row[k] = static_cast<float>(book[place(lane) + code] - codebook_zero);
        }
        for (int64_t i = 0; i < apart; ++i) {
            uint16_t column;
            int16_t extra;
            std::memcpy(&column, behind + (i * panel_outputs + lane) * 2, 2);
            std::memcpy(&extra, behind + ((apart + i) * panel_outputs + lane) * 2, 2);
            row[column < matrix.inputs ? column : 0] += static_cast<float>(extra);
        }
        for (int64_t k = 0; k < matrix.inputs; ++k) row[k] *= scale;
    }

    static LinearKind kind(TileFunction* const (&tile)[isa_count]) {
        LinearKind made = {Kind::name, check, arrays, fields, input, pack_panel, unpack_row, {}};
        for (int isa = 0; isa < isa_count; ++isa) made.tile[isa] = tile[isa];
        return made;
    }
};

}  // namespace ockham
