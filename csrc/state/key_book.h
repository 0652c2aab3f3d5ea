// A codebook of the keys of one layer and head: 256 centroids, and what says to which of them a key
// belongs. A score with a key is near that with its centroid, if it is chosen by how far scores differ and
// not by how far keys do: the key k belongs to the first centroid c for which direction(c) k - offset(c) is
// largest. With direction(c) = H c and offset(c) = c H c / 2, where H is the mean of q q^T over queries, that
// is the centroid whose scores with those queries differ least in the mean square (paper 179).
#pragma once

#include <cstdint>
#include <vector>

namespace ockham {

constexpr int64_t book_size = 256;

struct KeyBook {
    int64_t row = 0;                  // elements of a centroid, a multiple of 32: zero beyond its own
    std::vector<uint16_t> centroids;  // bf16 [256][row]
    std::vector<float> directions;    // [256][width], as wide as a stored key
    std::vector<float> offsets;       // [256]

    // Bytes that scoring reads.
    int64_t bytes() const { return static_cast<int64_t>(centroids.size() * sizeof(uint16_t)); }
};

}  // namespace ockham
