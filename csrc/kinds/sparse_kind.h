// What the kinds of sparse.h share beside their kernels.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "kinds/kind.h"
#include "kinds/lay_out.h"
#include "kinds/sparse.h"

namespace ockham {

// `Kind` has a `name`, the `value_bytes` V, the `unit_scale_bytes` that a panel has for each unit, and `fields`,
// of which the first are the values: `row_inputs` of them, each `stored` as that function says. `lay_scales` lays
// out the others.
template <class Kind>
struct SparseKind {
    static constexpr int value_bytes = Kind::value_bytes;
    static constexpr int64_t values_in_register = 64 / value_bytes, in_lane = 4 / value_bytes;
    static constexpr int64_t registers = sparse_inputs / in_lane;

    static int64_t scale_bytes(const PackedMatrix& matrix) { return units_of(matrix) * Kind::unit_scale_bytes; }
    static int64_t record_bytes(const PackedMatrix& matrix) {
        return scale_bytes(matrix) + (units_of(matrix) + 1) * 4;
    }
    static int64_t lines(const PackedMatrix& matrix) {
        const int64_t dense = matrix.panels() * units_of(matrix) * (mask_bytes + dense_bytes(value_bytes)) / 64;
        return matrix.group ? matrix.group : dense;
    }

    static void check(const PackedMatrix& matrix, bool zeros) {
        const int64_t all = matrix.panels() * units_of(matrix);
        const int64_t least = all * mask_bytes / 64, most = all * (mask_bytes + dense_bytes(value_bytes)) / 64;
        if (zeros || (matrix.group && (matrix.group < least || matrix.group > most)))
            throw std::invalid_argument(std::string(Kind::name) + " of this shape takes " + std::to_string(least) +
                                        " to " + std::to_string(most) + " lines of 64 bytes, not " +
                                        std::to_string(matrix.group) + ", and has no zero points.");
        if (lines(matrix) >= int64_t{1} << 26)
            throw std::invalid_argument(std::string(Kind::name) +
                                        " holds matrices of less than 4 GiB; choose another format.");
    }

    static std::vector<PackedArray> arrays(const PackedMatrix& matrix, bool) {
        return {{"weight", "uint8", {lines(matrix) * 64 + guard_bytes(value_bytes)}},
                {"scale", "uint8", {matrix.panels(), record_bytes(matrix)}}};
    }

    // A value of a row of the format; what fills up the last unit is zero.
    static uint16_t value_at(const PackedMatrix& matrix, const uint8_t* row, int64_t k) {
        if (k >= Kind::row_inputs(matrix)) return 0;
        uint16_t value = 0;
        std::memcpy(&value, row + k * value_bytes, value_bytes);
        return value;
    }

    static void put_start(const PackedMatrix& matrix, uint8_t* record, int64_t unit, uint32_t start) {
        std::memcpy(record + scale_bytes(matrix) + unit * 4, &start, 4);
    }
    static uint32_t start_at(const PackedMatrix& matrix, const uint8_t* record, int64_t unit) {
        uint32_t start;
        std::memcpy(&start, record + scale_bytes(matrix) + unit * 4, 4);
        return start;
    }

    // The bytes of each unit, where its end will stand.
    static void measure(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to) {
        const int64_t row_bytes = Kind::row_inputs(matrix) * value_bytes;
        for (int64_t unit = 0; unit < units_of(matrix); ++unit) {
            int64_t bytes = mask_bytes;
            for (int64_t lane = 0; lane < panel_outputs; ++lane)
                for (int64_t k = unit * sparse_inputs; k < (unit + 1) * sparse_inputs; ++k)
                    bytes += value_at(matrix, fields[0] + lane * row_bytes, k) ? value_bytes : 0;
            put_start(matrix, to.scale, unit + 1, static_cast<uint32_t>(bytes));
        }
    }

    static void place(const PackedMatrix& matrix, int64_t first, int64_t panels) {
        uint8_t* const records = static_cast<uint8_t*>(const_cast<void*>(matrix.scale));
        const int64_t stride = record_bytes(matrix), units = units_of(matrix);
        uint64_t end = first ? start_at(matrix, records + (first - 1) * stride, units) : 0;
        for (int64_t panel = first; panel < first + panels; ++panel) {
            uint8_t* const record = records + panel * stride;
            put_start(matrix, record, 0, static_cast<uint32_t>(end));
            for (int64_t unit = 1; unit <= units; ++unit) {
                end += start_at(matrix, record, unit);
                if (end > static_cast<uint64_t>(lines(matrix)) * 64)
                    throw std::invalid_argument("more weights are not zero than the matrix has room for.");
                put_start(matrix, record, unit, static_cast<uint32_t>(end));
            }
        }
    }

    static void pack_panel(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to) {
        const int64_t row_bytes = Kind::row_inputs(matrix) * value_bytes;
        for (int64_t unit = 0; unit < units_of(matrix); ++unit) {
            uint8_t* const masks = to.weight + start_at(matrix, to.scale, unit);
            uint8_t* values = masks + mask_bytes;
            std::memset(masks, 0, mask_bytes);
            for (int64_t bit = 0; bit < mask_bytes * 8; ++bit) {
                const int64_t lane = bit % values_in_register / in_lane;
                const int64_t k = unit * sparse_inputs + bit / values_in_register * in_lane + bit % in_lane;
                const uint16_t value = value_at(matrix, fields[0] + lane * row_bytes, k);
                if (value == 0) continue;
                const uint16_t stored = Kind::stored(value);
                masks[bit / 8] = static_cast<uint8_t>(masks[bit / 8] | 1 << bit % 8);
                std::memcpy(values, &stored, value_bytes);
                values += value_bytes;
            }
        }
        Kind::lay_scales(matrix, fields, to.scale);
    }

    // Calls put(k, value) for each k < K whose value of this output is not zero.
    template <class Put>
    static void each_value(const PackedMatrix& matrix, int64_t output, Put put) {
        const Starts starts(matrix, value_bytes, scale_bytes(matrix));
        for (int64_t unit = 0; unit < units_of(matrix); ++unit) {
            const uint8_t* const masks = starts.unit(output / panel_outputs, unit);
            const uint8_t* values = masks + mask_bytes;
            for (int64_t bit = 0; bit < mask_bytes * 8; ++bit) {
                if (!(masks[bit / 8] >> bit % 8 & 1)) continue;
                const int64_t k = unit * sparse_inputs + bit / values_in_register * in_lane + bit % in_lane;
                if (bit % values_in_register / in_lane == output % panel_outputs && k < matrix.inputs)
                    put(k, values);
                values += value_bytes;
            }
        }
    }

    static constexpr RaggedPanels ragged = {measure, place};
};

}  // namespace ockham
