// The centroid of each of 16 keys in a codebook (state/key_book.h): what a query scores with a key is looked
// up in its scores with the 256 centroids. A block counts as much as the softmax of those scores gives its
// keys. summary: uint8 [16]. query: bf16 [width].
#include "choosers/chooser.h"

#ifdef OCKHAM_ISA_NAMESPACE

#include <algorithm>

#include "kernels/functions.h"
#include "kernels/lanes.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

namespace {

constexpr int at_once = 4;  // queries, whose tables stand side by side

typedef float Four __attribute__((vector_size(16)));

// Of queries [0, count), count <= 4, the sums over the keys of each summary.
void look_up(const uint16_t* const* queries, int count, const KeyBook& book,
             const uint8_t* const* summaries, int64_t summary_count, float* scores, int64_t stride) {
    alignas(64) Four rows[book_size];
    float* table = reinterpret_cast<float*>(rows);
    alignas(64) float peaks[lane_count];
    for (int i = 0; i < at_once; ++i) {
        const uint16_t* q = queries[std::min(i, count - 1)];
        float peak = 0.0f;
        for (int64_t c = 0; c < book_size; ++c) {
            const uint16_t* centroid = book.centroids.data() + c * book.row;
            Lanes products = zero();
            for (int64_t e = 0; e < book.row; e += 2 * lane_count)
                products = dot(load_pairs(q + e), load_pairs(centroid + e), products);
            const float score = sum(products);
            if (c == 0 || score > peak) peak = score;
            table[c * at_once + i] = score;
        }
        for (int j = i; j < lane_count; j += at_once) peaks[j] = peak;
    }
    for (int64_t i = 0; i < book_size * at_once; i += lane_count)
        store(table + i, exponential_of_negative(load(table + i) - load(peaks)));
    for (int64_t g = 0; g < summary_count; ++g) {
        const uint8_t* codes = summaries[g];
        Four a = {}, b = {}, c = {}, d = {};  // four chains, which need not wait for each other
        for (int key = 0; key < lane_count; key += 4) {
            a += rows[codes[key]];
            b += rows[codes[key + 1]];
            c += rows[codes[key + 2]];
            d += rows[codes[key + 3]];
        }
        const Four sums = (a + b) + (c + d);
        for (int i = 0; i < count; ++i) scores[i * stride + g] = sums[i];
    }
}

}  // namespace

void score_lookups(const uint8_t* queries, int64_t query_count, int64_t width, const KeyBook* book,
                   const uint8_t* const* summaries, int64_t count, float* scores, int64_t stride) {
    const int64_t bytes = (2 * width + 63) / 64 * 64;
    for (int64_t first = 0; first < query_count; first += at_once) {
        const auto some = static_cast<int>(std::min<int64_t>(at_once, query_count - first));
        const uint16_t* each[at_once];
        for (int i = 0; i < some; ++i)
            each[i] = reinterpret_cast<const uint16_t*>(queries + (first + i) * bytes);
        look_up(each, some, *book, summaries, count, scores + first * stride, stride);
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include <algorithm>
#include <vector>

#include "isa/each.h"
#include "kernels/halves.h"

namespace ockham {

OCKHAM_DECLARE(ScoreSummaries score_lookups);

namespace {

int64_t summary_bytes(int64_t) { return group_keys; }

int64_t query_bytes(int64_t width) { return (2 * width + 63) / 64 * 64; }

void summarise(const float* keys, int64_t width, const KeyBook* book, uint8_t* summary) {
    std::vector<float> turned(static_cast<size_t>(width * group_keys));  // [element][key]
    for (int64_t key = 0; key < group_keys; ++key)
        for (int64_t e = 0; e < width; ++e) turned[e * group_keys + key] = keys[key * width + e];
    float best[group_keys] = {};
    for (int64_t c = 0; c < book_size; ++c) {
        const float* direction = book->directions.data() + c * width;
        float near[group_keys];
        std::fill_n(near, group_keys, -book->offsets[c]);
        for (int64_t e = 0; e < width; ++e)
            for (int64_t key = 0; key < group_keys; ++key)
                near[key] += direction[e] * turned[e * group_keys + key];
        for (int64_t key = 0; key < group_keys; ++key)
            if (c == 0 || near[key] > best[key]) {
                best[key] = near[key];
                summary[key] = static_cast<uint8_t>(c);
            }
    }
}

void prepare(const float* q, int64_t width, uint8_t* query) {
    auto* halves = reinterpret_cast<uint16_t*>(query);
    for (int64_t e = 0; e < width; ++e) halves[e] = to_bf16(q[e]);
    std::fill(halves + width, halves + query_bytes(width) / 2, static_cast<uint16_t>(0));
}

const Chooser chooser{"lookups",      summary_bytes, query_bytes,
                      summarise,      prepare,       OCKHAM_EACH_ISA(score_lookups),
                      /*sums=*/true,  /*looks_up=*/true};
const AddedChooser added{chooser};

}  // namespace

}  // namespace ockham

#endif
