#include "state/alike.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/layer_kernels.h"

namespace ockham {

namespace {

constexpr int rounds = 4;  // in which the keys of one part change sides
constexpr int64_t lanes = 16;

float product(const float* a, const float* b, int64_t width) {
    float sums[lanes] = {};
    for (int64_t e = 0; e < width; e += lanes)
        for (int64_t i = 0; i < lanes; ++i) sums[i] += a[e + i] * b[e + i];
    for (int64_t half = lanes / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}

void normalise(float* key, int64_t width) {
    const float length = std::sqrt(product(key, key, width));
    const float by = length > 0.0f && std::isfinite(length) ? 1.0f / length : 0.0f;
    // A key that is no number has no direction, and compares with others like one of length 0.
    for (int64_t e = 0; e < width; ++e) key[e] = by == 0.0f ? 0.0f : key[e] * by;
}

class Parting {
   public:
    Parting(const float* keys, int64_t count, int64_t width)
        : keys_(keys), width_(width), scores_(static_cast<size_t>(count)),
          direction_(static_cast<size_t>(width)), other_(static_cast<size_t>(width)) {}

    // Parts the keys `first` to `last` name, which ascend.
    void part(int32_t* first, int32_t* last) {
        const int64_t count = last - first;
        if (count <= group_keys) return;
        const int64_t unit = count > block_keys ? block_keys : group_keys;
        int32_t* middle = first + std::max<int64_t>(count / unit / 2, 1) * unit;
        std::vector<int32_t> before;
        for (int round = 0; round < rounds; ++round) {
            before.assign(first, middle);
            mean(first, middle, direction_);
            mean(middle, last, other_);
            for (int64_t e = 0; e < width_; ++e) direction_[e] -= other_[e];
            for (const int32_t* key = first; key < last; ++key)
                scores_[*key] = product(keys_ + *key * width_, direction_.data(), width_);
            std::nth_element(first, middle, last, [&](int32_t one, int32_t two) {
                return scores_[one] > scores_[two] || (scores_[one] == scores_[two] && one < two);
            });
            std::sort(first, middle);
            std::sort(middle, last);
            if (std::equal(before.begin(), before.end(), first)) break;
        }
        part(first, middle);
        part(middle, last);
    }

   private:
    void mean(const int32_t* first, const int32_t* last, std::vector<float>& to) const {
        std::fill(to.begin(), to.end(), 0.0f);
        for (const int32_t* key = first; key < last; ++key) {
            const float* values = keys_ + *key * width_;
            for (int64_t e = 0; e < width_; ++e) to[e] += values[e];
        }
        const float by = 1.0f / static_cast<float>(last - first);
        for (float& value : to) value *= by;
    }

    const float* keys_;
    const int64_t width_;
    std::vector<float> scores_, direction_, other_;
};

}  // namespace

std::vector<int32_t> alike(float* keys, int64_t count, int64_t width) {
    for (int64_t key = 0; key < count; ++key) normalise(keys + key * width, width);
    std::vector<int32_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    Parting(keys, count, width).part(order.data(), order.data() + count);
    return order;
}

}  // namespace ockham
