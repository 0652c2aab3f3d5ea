// Sums of rows and products of rows against loops over single values.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/layer_kernels.h"
#include "tests/tests.h"

namespace ockham::tests {

namespace {

uint32_t state = 5;
float random_float() {  // in [-1, 1)
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) * (2.0f / 16777216.0f) - 1.0f;
}

std::vector<float> random_floats(int64_t count) {
    std::vector<float> made(static_cast<size_t>(count));
    for (float& value : made) value = random_float();
    return made;
}

float added(Isa isa, float a, float b, float sum) {  // portable code rounds an fma twice
    return isa == Isa::portable ? a * b + sum : std::fma(a, b, sum);
}

void sums_of_rows() {
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
        if (!supported(isa)) continue;
        for (int64_t number = 0; number < 200; ++number) {
            const int64_t results = 1 + number % 11, length = 1 + number * 7 % 151;
            const int64_t count = number * 5 % 23, stride = length + number % 4;
            const std::vector<float> rows = random_floats(count * stride);
            const std::vector<float> start = random_floats(results * length);
            const std::vector<float> factors = random_floats(results * count);
            std::vector<const float*> scales;
            for (int64_t r = 0; r < results; ++r) scales.push_back(factors.data() + r * count);
            const float factor = number % 2 == 0 ? 0.0f : random_float();
            const float* from = number % 2 == 0 ? nullptr : start.data();
            std::vector<float> expected(start.size()), found(start.size());
            for (int64_t r = 0; r < results; ++r)
                for (int64_t e = 0; e < length; ++e) {
                    float sum = from == nullptr ? 0.0f : start[r * length + e] * factor;
                    for (int64_t n = 0; n < count; ++n)
                        sum = added(isa, scales[r][n], rows[n * stride + e], sum);
                    expected[r * length + e] = sum;
                }
            row_kernels(isa).sum_rows({rows.data(), stride, count, scales.data(), results, length, from,
                                       factor, found.data()});
            check(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0,
                  "sums of rows are added in their order, whatever is summed at once");
            if (from == nullptr) continue;
            found = start;
            row_kernels(isa).sum_rows({rows.data(), stride, count, scales.data(), results, length,
                                       found.data(), factor, found.data()});
            check(found == expected, "sums may stand where they start from");
        }
    }
}

void products_of_rows() {
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
        if (!supported(isa)) continue;
        for (int64_t number = 0; number < 150; ++number) {
            const int64_t count = number % 9, length = 1 + number * 7 % 151, stride = length + number % 4;
            const std::vector<float> x = random_floats(length), rows = random_floats(count * stride);
            std::vector<float> found(static_cast<size_t>(count));
            row_kernels(isa).dots(x.data(), rows.data(), stride, count, length, found.data());
            for (int64_t n = 0; n < count; ++n) {
                float lanes[16] = {};
                for (int64_t e = 0; e < length; ++e)
                    lanes[e % 16] = added(isa, x[e], rows[n * stride + e], lanes[e % 16]);
                for (int half = 8; half > 0; half /= 2)
                    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
                check(found[n] == lanes[0], "products are summed in 16 lanes, and these as a tree");
            }
        }
    }
}

const Added sums{"sums of rows are those of loops", sums_of_rows};
const Added products{"products of rows are those of loops", products_of_rows};

}  // namespace

}  // namespace ockham::tests
