// Rows of which it is decided while they are computed how much of each feed-forward they run:
// ockham.core.sparing.Sparing.
#pragma once

#include <cstdint>
#include <vector>

#include "step.h"

namespace ockham {

struct Run;

// What was decided so far in a step under way.
class Spared {
   public:
    // Rows that run the same number of neurons of a feed-forward; 0: all.
    struct Group {
        int64_t neurons = 0;
        std::vector<int32_t> rows;
    };

    // Decides, where an operation is the first one of a feed-forward. The groups in which the active
    // rows run the operation: null where they all run all of it. There is at least one, which may be
    // empty.
    const std::vector<Group>* before(Run& run, int64_t operation);
    // Lets rows that ran a whole feed-forward decide about the next ones.
    void after(Run& run, int64_t operation);

    // [layers][rows] neurons that a row ran, 0 for all, -1 for none; empty where nothing is decided.
    std::vector<int32_t> ran;

   private:
    int64_t layer_of(const SparingView& rules, int64_t operation) const;
    void decide(Run& run, int64_t operation, int64_t layer);

    std::vector<int32_t> left_;      // of each row, how many feed-forwards it still skips
    std::vector<Group> groups_;      // of the feed-forward under way
    bool whole_ = true;              // whether all active rows run all of it
    std::vector<int32_t> deciding_;  // the rows that decide by it about the next ones
    std::vector<float> stream_;      // what stood in the residual stream before it, of those
};

}  // namespace ockham
