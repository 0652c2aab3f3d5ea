// The sums of ockham/model/packed/digest.py: a multilinear hash at the speed of memory.
#pragma once

#include <cstdint>

#include "kernels/threads.h"

namespace ockham {

// Words that one sum is over.
constexpr int64_t kDigestWords = int64_t{1} << 16;

// sums[b] = sum of words[b * kDigestWords + i] * keys[i] mod 2^64, of `count` words in all.
void digest_words(ThreadPool& pool, const uint64_t* words, int64_t count, const uint64_t* keys,
                  uint64_t* sums);

}  // namespace ockham
