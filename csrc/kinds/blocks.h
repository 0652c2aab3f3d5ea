// What the kinds have in common that hold blocks with their scales inside, as GGUF files do: the stored
// values to the bit, in the order in which the products read them.
//
// A panel of 16 outputs is a row of blocks, one after another, and nothing else: a product reads one
// stream. A block holds so many inputs of the 16 outputs, first their codes in steps of 32 inputs:
//
//   2 bits: [2][16][4] bytes; bits 2 q and 2 q + 1 of byte i of the unit v belong to input 16 v + 4 q + i;
//   3 bits: the low two so, then [16][4] bytes: bit q of byte i belongs to input 4 q + i;
//   4 bits: [4][16][4] bytes; byte i of the unit u holds inputs 8 u + i (low) and 8 u + 4 + i (high);
//   5 bits: the low four so, then [16][4] bytes: bit q of byte i belongs to input 4 q + i;
//   6 bits: the low four so, then [2][16][4] bytes: bits 2 q and 2 q + 1 of byte i of the unit v belong
//           to input 16 v + 4 q + i;
//   8 bits: [8][16][4] bytes, code + 128; byte i of the unit q is input 4 q + i.
//
// (Blocks of 16 inputs in 4 bits have the first two units.)
//
// After all codes of the block follow, each for 16 outputs (d and m are fp16; d may be a byte, see
// BlockScale, and may stand for d / 2^halvings; where there are divisors, `scale` float32 [P][16], d is
// divided by the output's own):
//
//   flat blocks    d[16]; with minima m[16] too
//   nested blocks  (256 inputs) factors uint8 or int8 s[groups][16]; with minima uint8
//                  t[groups / 2][16][2]; d[16]; with minima m[16]
//
// A kind may look up its codes in a table: `code` below is then what stands there.
//
// Block after block, from y = 0 (portable code rounds each product before it adds; codes count from the
// one that means zero, where there are no minima):
//
//   flat             y = fma(float(sum of a * code), scale_x * d, y)
//   flat, minima     the same, then y = fma(float(sum of a) * scale_x, m, y)
//   nested           y = fma(float(sum of s * (sum of a * code)), scale_x * d, y)
//   nested, minima   the same, then y = fma(float(sum of t * (sum of a)), -scale_x * m, y)
#pragma once

#include <cstdint>

namespace ockham {

// What codes stand for: level + zero, as products read it.
struct LevelTable {
    alignas(16) uint8_t bytes[16];

    template <int count>
    constexpr LevelTable(const int (&levels)[count], int zero) : bytes() {
        for (int i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(levels[i] + zero);
    }
    constexpr int top() const {
        int most = 0;
        for (int i = 0; i < 16; ++i) most = bytes[i] > most ? bytes[i] : most;
        return most;
    }
};

// Levels that several kinds have: those of GGUF's IQ4 types, and twice those of floats of the form E2M1.
constexpr LevelTable iq4_levels{
    {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}, 128};
constexpr LevelTable e2m1_levels{{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}, 12};

// How a scale is stored: as fp16; as a byte e for 2^(e - 128); as half of a float of 8 bits (E4M3).
enum class BlockScale { half, exponent, small };

// How the blocks of a kind are made up.
struct BlockShape {
    int64_t inputs;
    int bits;
    int64_t scale_group = 0;  // inputs that share a factor s; 0: there is none
    bool minima = false;
    int zero = 0;  // what means zero of what is multiplied, where there are no minima
    bool signed_scales = false;
    const LevelTable* levels = nullptr;  // null: codes are multiplied themselves
    BlockScale scale = BlockScale::half;
    int halvings = 0;
    bool divisors = false;

    constexpr int64_t groups() const { return scale_group ? inputs / scale_group : 0; }
    // The largest that is multiplied.
    constexpr int top() const { return levels ? levels->top() : (1 << bits) - 1; }
    // Inputs that are read at once, and how often a block has so many.
    constexpr int64_t step_inputs() const { return inputs < 32 ? inputs : 32; }
    constexpr int64_t steps() const { return inputs / step_inputs(); }
    constexpr int64_t scale_bytes() const { return scale == BlockScale::half ? 2 : 1; }
    constexpr int64_t codes_bytes() const { return inputs * bits * 2; }
    constexpr int64_t scales_at() const { return codes_bytes(); }
    constexpr int64_t minima_at() const { return scales_at() + groups() * 16; }
    constexpr int64_t halves_at() const {
        return minima_at() + (scale_group && minima ? groups() * 16 : 0);
    }
    constexpr int64_t bytes() const { return halves_at() + 16 * (minima ? 4 : scale_bytes()); }
};

}  // namespace ockham
