// What every kind of packed matrix is: how it lies in memory, in which form it reads its input, and the
// kernels that multiply with it. (What a format means is said in ockham/weights; a kind bears the name of
// the format whose matrices it holds.)
//
// A kind is one file, NAME.cpp in this folder; no other file names it. The build compiles that file for
// each instruction set with OCKHAM_ISA_NAMESPACE (and OCKHAM_SIMD, the header of its 16-lane types)
// defined, and once more without, with no flags: there a static `AddedKind` puts the kind into the table.
// So a kind's file has two parts. Of the first see isa/isa.h for what may stand in it.
//
//   #ifdef OCKHAM_ISA_NAMESPACE
//   #include OCKHAM_SIMD
//   #include "kernels/linear_kernels.h"
//   namespace ockham::OCKHAM_ISA_NAMESPACE { void NAME_tile(...) { ... } }
//   #else
//   #include "isa/each.h"
//   namespace ockham { OCKHAM_DECLARE(TileFunction NAME_tile); ... const AddedKind added{...}; }
//   #endif
#pragma once

#include <string>
#include <vector>

#include "kernels/linear.h"

namespace ockham {

// One array of a packed matrix, as Python holds it: panels first. `dtype` is NumPy's name.
struct PackedArray {
    const char* name;  // "weight", "scale" or "zero"
    const char* dtype;
    std::vector<int64_t> shape;
    size_t bytes() const;
};

// What the format's own rows hold, one field after another: so many bytes for each row.
struct RowField {
    const char* name;
    int64_t row_bytes;
};

// Where one panel of each array begins.
struct PanelMemory {
    uint8_t* weight;
    uint8_t* scale;
    uint8_t* zero;
};

// Chooses codes and scales (fp16) for one row of weights. No fused product and no order of lanes may be
// left open: what is packed is part of a model's content, and has the same bits whichever machine packed
// it, with NumPy too.
using QuantiseFunction = void(const PackedMatrix& matrix, const float* row, uint8_t* codes,
                              uint16_t* scales);

// Of kinds whose panels take room by their values. Rows are then packed from the first panel on, and
// pack_panel() is given the beginning of the whole array `weight`.
struct RaggedPanels {
    // Notes in `to.scale` how much room a panel takes.
    void (*measure)(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to);
    // Gives panels [first, first + panels), which are measured, their places behind the one before. Throws
    // std::invalid_argument where the matrix has no room for them.
    void (*place)(const PackedMatrix& matrix, int64_t first, int64_t panels);
};

struct LinearKind {
    const char* name;
    // Throws std::invalid_argument with a sentence for a shape or a group that it cannot have.
    void (*check)(const PackedMatrix& matrix, bool zeros);
    // The arrays that there are, of a matrix that was checked.
    std::vector<PackedArray> (*arrays)(const PackedMatrix& matrix, bool zeros);
    std::vector<RowField> (*fields)(const PackedMatrix& matrix);
    InputForm (*input)(const PackedMatrix& matrix);
    // Lays out one panel of 16 rows: fields[i] begins at the first of them.
    void (*pack_panel)(const PackedMatrix& matrix, const uint8_t* const* fields, PanelMemory to);
    void (*unpack_row)(const PackedMatrix& matrix, int64_t output, float* row);
    TileFunction* tile[isa_count];
    QuantiseFunction* quantise[isa_count] = {};  // where the format chooses codes by itself; else null
    // The instruction set whose bits the products have on `isa`: where amx sums floats, its own.
    Isa (*product_bits)(Isa isa) = bits_of;
    const RaggedPanels* ragged = nullptr;
};

// A row of the table. `kind` has to live as long as the program.
struct AddedKind {
    explicit AddedKind(const LinearKind& kind);
};

// By name; null if there is none.
const LinearKind* find_kind(const std::string& name);

// All names, sorted.
std::vector<std::string> kind_names();

}  // namespace ockham
