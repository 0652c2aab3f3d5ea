// Rows that decide by themselves which feed-forwards they skip: ockham.core.sparing.Sparing.
#pragma once

#include <cstdint>
#include <vector>

#include "state/memory.h"
#include "step.h"

namespace ockham {

struct Run;

// What the rows of a step under way have decided so far.
class Spared {
   public:
    // Before and after an operation of the program: leaves rows that skip it out of `run.active`, and
    // lets those that ran a whole feed-forward decide about the next ones.
    void before(Run& run, int64_t operation);
    void after(Run& run, int64_t operation);

    // [layers][rows] 1 where a row skipped; empty where no row decides.
    std::vector<uint8_t> skipped;

   private:
    int64_t layer_of(const SparingView& rules, int64_t operation) const;

    std::vector<int32_t> left_;      // of each row, how many feed-forwards it still skips
    std::vector<int32_t> runs_;      // the rows that run the feed-forward under way
    std::vector<int32_t> deciding_;  // those of them that decide by it
    std::vector<float> stream_;      // what stood in the residual stream before it, of those
};

}  // namespace ockham
