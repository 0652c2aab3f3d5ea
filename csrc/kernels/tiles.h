// Products on AMX tiles: what a kind of matrices says of its steps, and the walk that all of them share.
//
// Products of integers: no bit differs from avx512's. A step is as many inputs as one float sum covers: their integer sum is
// exact however it is added up, and what follows is done in the same order. So a kind writes the codes of
// some steps of a panel as int8, in the order in which a tile is read; walk() multiplies them with all
// rows of the area, 16 at a time.
//
// Included by kinds/*.cpp, compiled for avx512, and by isa/amx.cpp: see isa/isa.h for what may stand here.
#pragma once

#include <cstdint>

#include "kernels/linear.h"

// Whether a kind's file should give its product for amx here.
#if defined(OCKHAM_AMX) && defined(__AVX512F__)
#define OCKHAM_TILES
#endif

namespace ockham::amx {

// Where a kind writes steps [begin, end) of a panel.
struct Unpacked {
    // The weights less the code that means zero, in 16 outputs of 4 inputs after another: [inputs / 4]
    // [16][4] for each step. With two planes, 128 times those of the second are added; they follow the
    // first plane of the same step.
    int8_t* weights;
    float* scales;     // [steps][16]
    float* minima;     // [steps][16], where there are any
    int16_t* factors;  // [steps][pairs][16][2], of nested minima
};

// What is added to a step's y after fma(float(sum), scale_x * scale, y).
enum class Minima {
    none,
    flat,   // fma(total, minimum, y): `total` is a float in PreparedInput::offsets
    nested,        // fma(float(sum of factors times offsets, in pairs of int16), -scale_x * minimum, y)
    nested_by_16,  // the same of twice as many pairs
};

// The pairs of factors of a step.
constexpr int factor_pairs(Minima minima) {
    return minima == Minima::nested ? 4 : minima == Minima::nested_by_16 ? 8 : 0;
}

struct Steps {
    int64_t inputs;  // of one step: 64 times something, or 32 more
    int64_t count;   // of them in K
    int planes;
    Minima minima;
    void (*unpack)(const PackedMatrix& matrix, int64_t panel, int64_t begin, int64_t end,
                   const Unpacked& to);
};

// Whether the area has so many rows that tiles are faster. Where it has not, and for what a kind cannot
// unpack, the kind calls its avx512 kernel.
bool enough(const Area& area);

// A TileFunction for matrices whose steps these are. The area has enough() rows.
void walk(const Steps& steps, const PackedMatrix& matrix, const PreparedInput& input, const Area& area,
          float* y, int64_t y_stride, const float* bias);

// A TileFunction for bf16 matrices, of any number of rows: kinds/bf16.cpp says in which order it sums.
void multiply_bf16(const PackedMatrix& matrix, const PreparedInput& input, const Area& area, float* y,
                   int64_t y_stride, const float* bias);

}  // namespace ockham::amx
