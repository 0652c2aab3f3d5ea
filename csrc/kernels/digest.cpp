#include "kernels/digest.h"

#include <algorithm>

namespace ockham {

void digest_words(ThreadPool& pool, const uint64_t* words, int64_t count, const uint64_t* keys,
                  uint64_t* sums) {
    pool.parallel((count + kDigestWords - 1) / kDigestWords, [&](int64_t block, int) {
        const uint64_t* from = words + block * kDigestWords;
        const int64_t length = std::min(kDigestWords, count - block * kDigestWords);
        // Several sums, because one would wait for the last addition; modulo 2^64 order is no matter.
        uint64_t part[8] = {};
        int64_t i = 0;
        for (; i + 8 <= length; i += 8)
            for (int lane = 0; lane < 8; ++lane) part[lane] += from[i + lane] * keys[i + lane];
        for (; i < length; ++i) part[0] += from[i] * keys[i];
        uint64_t sum = 0;
        for (const uint64_t each : part) sum += each;
        sums[block] = sum;
    });
}

}  // namespace ockham
