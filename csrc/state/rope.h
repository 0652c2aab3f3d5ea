// Rotary embeddings: by which angles the keys of each layer are rotated before they are stored.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <vector>

namespace ockham {

struct Rope {
    std::vector<float> inverse_frequencies;
    float scale = 1.0f;
    // Dual chunk attention, see DualChunk of ockham.kernels.ops; `chunk` is 0 where there is none.
    int64_t chunk = 0, reach = 0, original = 0;
    // A rotated query grows by this with every `period` positions, see Rope of ockham.kernels.ops.
    float growth = 0.0f;
    int64_t period = 1;

    explicit operator bool() const { return !inverse_frequencies.empty(); }
    bool operator==(const Rope& other) const {
        return scale == other.scale && inverse_frequencies == other.inverse_frequencies &&
               chunk == other.chunk && reach == other.reach && original == other.original &&
               growth == other.growth && period == other.period;
    }
    // Pairs of elements that are rotated.
    int64_t half() const { return static_cast<int64_t>(inverse_frequencies.size()); }
    // The position that queries and keys are rotated to.
    int64_t rotated_to(int64_t position) const { return chunk > 0 ? position % chunk : position; }
    // By what a rotated query at a position is multiplied.
    float grown(int64_t position) const {
        const double steps = std::log(1.0 + static_cast<double>(position / period));
        return static_cast<float>(1.0 + static_cast<double>(growth) * steps);
    }
};

// The ropes of a program, each once, and which of them a layer has.
class Ropes {
   public:
    void set(int64_t layer, const Rope& rope) {
        const auto found = std::find(all_.begin(), all_.end(), rope);
        of_layer_[layer] = found - all_.begin();
        if (found == all_.end()) all_.push_back(rope);
    }
    const std::vector<Rope>& all() const { return all_; }
    // Index into all(), or -1 for a layer whose keys are not rotated.
    int64_t of_layer(int64_t layer) const {
        const auto found = of_layer_.find(layer);
        return found == of_layer_.end() ? -1 : found->second;
    }

   private:
    std::vector<Rope> all_;
    std::map<int64_t, int64_t> of_layer_;
};

}  // namespace ockham
