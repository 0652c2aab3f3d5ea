#include "kernels/blocks.h"

#include "kernels/halves.h"

namespace ockham {

namespace {

// Input k of lane `lane` of a step's codes.
int code_of(const uint8_t* step, int bits, int64_t lane, int64_t k) {
    if (bits == 8) return step[(k / 4 * 16 + lane) * 4 + k % 4];
    const uint8_t both = step[(k / 8 * 16 + lane) * 4 + k % 4];
    const int low = k % 8 < 4 ? both & 15 : both >> 4;
    const int64_t quad = k / 4, width = bits - 4;
    if (width == 0) return low;
    const int64_t quads = 8 / width;  // of a unit of high bits
    const uint8_t high = step[256 + (quad / quads * 16 + lane) * 4 + k % 4];
    return low | (high >> quad % quads * width & ((1 << width) - 1)) << 4;
}

}  // namespace

void unpack_block_row(const PackedMatrix& matrix, int64_t output, float* row) {
    const BlockShape shape = block_shape(matrix.kind);
    const int64_t blocks = matrix.inputs / shape.inputs, lane = output % panel_outputs;
    const uint8_t* block = static_cast<const uint8_t*>(matrix.weight) +
                           output / panel_outputs * blocks * shape.bytes();
    for (int64_t b = 0; b < blocks; ++b, block += shape.bytes(), row += shape.inputs) {
        const float d = from_half(block + shape.halves_at() + 2 * lane);
        const float m = shape.minima ? from_half(block + shape.halves_at() + 32 + 2 * lane) : 0.0f;
        for (int64_t k = 0; k < shape.inputs; ++k) {
            const int code = code_of(block + k / 32 * 64 * shape.bits, shape.bits, lane, k % 32);
            const int64_t group = shape.scale_group ? k / shape.scale_group : 0;
            const uint8_t scale = block[shape.scales_at() + group * 16 + lane];
            switch (matrix.kind) {
                case Kind::q8_0:
                    row[k] = d * static_cast<float>(code - 128);
                    break;
                case Kind::q5_0:
                    row[k] = d * static_cast<float>(code - 16);
                    break;
                case Kind::q6_k:
                    row[k] = d * static_cast<float>(static_cast<int8_t>(scale)) *
                             static_cast<float>(code - 32);
                    break;
                case Kind::q4_k:
                case Kind::q5_k: {
                    const uint8_t minimum =
                        block[shape.minima_at() + (group / 2 * 16 + lane) * 2 + group % 2];
                    row[k] = d * static_cast<float>(scale) * static_cast<float>(code) -
                             m * static_cast<float>(minimum);
                    break;
                }
                default:
                    row[k] = d * static_cast<float>(code) + m;
            }
        }
    }
}

}  // namespace ockham
