#include "kernels/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/layer_kernels.h"

namespace ockham {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Largest noise of a 32-bit word, and largest minus smallest (NOISE_SPAN of sampling.py).
constexpr double most_noise = 22.88;
constexpr double noise_span = 26.02;
// Tokens less likely than e^-20 of the likeliest matter to top_p only where p is near 1.
constexpr double tail = 20.0;

uint64_t bits_of(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
double from_bits(uint64_t bits) {
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// words[d]: every word whose noise is at least d is at least this (a little lower, to be safe).
struct NoiseThresholds {
    static constexpr int count = 24;
    uint32_t words[count];
    NoiseThresholds() {
        for (int d = 0; d < count; ++d) {
            const double uniform = natural_exp(-natural_exp(-static_cast<double>(d)));
            words[d] = static_cast<uint32_t>(std::max(0.0, uniform * 4294967296.0 - 4.0));
        }
    }
};

// The noise of a sequence of ascending tokens of one draw: sixteen blocks of four words at a time.
class Noise {
   public:
    Noise(Isa isa, const DrawView& draw)
        : kernels_(row_kernels(isa)),
          key_{static_cast<uint32_t>(draw.seed), static_cast<uint32_t>(draw.seed >> 32)},
          position_(draw.position),
          stream_(draw.stream) {}

    uint32_t word(int64_t token) {
        const int64_t block = token >> 2;
        if (block < first_ || block >= first_ + 16) {
            kernels_.philox(key_, static_cast<uint32_t>(block), position_, stream_, 0, words_);
            first_ = block;
        }
        return words_[token - (first_ << 2)];
    }

   private:
    const RowKernels& kernels_;
    const uint32_t key_[2];
    const uint32_t position_, stream_;
    int64_t first_ = -16;
    uint32_t words_[64];
};

// The best token so far: the largest value, the lowest id on a tie.
struct Winner {
    int64_t token = no_token;
    double value = -infinity;
    void offer(int64_t candidate, double worth) {
        if (token == no_token || worth > value || (worth == value && candidate < token)) {
            token = candidate;
            value = worth;
        }
    }
};

// The token of `ids` (ascending) with the largest z + noise.
//
// A word below the threshold of the next lower integer of what a token lacks cannot make it win, so
// the two logarithms are taken for few tokens: first for the likely ones, which leave little to win.
int64_t draw_token(Isa isa, const std::vector<int64_t>& ids, const std::vector<double>& z, double best,
                   const DrawView& draw) {
    static const NoiseThresholds thresholds;
    Winner winner;
    const double likely = best - 1.0;
    Noise first(isa, draw), second(isa, draw);
    for (size_t i = 0; i < ids.size(); ++i)
        if (z[i] >= likely) winner.offer(ids[i], z[i] + gumbel(first.word(ids[i])));
    for (size_t i = 0; i < ids.size(); ++i) {
        if (z[i] >= likely) continue;
        const double lacks = winner.value - z[i];
        if (lacks > most_noise) continue;
        const uint32_t word = second.word(ids[i]);
        if (lacks >= 1.0 && word < thresholds.words[static_cast<int>(lacks)]) continue;
        winner.offer(ids[i], z[i] + gumbel(word));
    }
    return winner.token;
}

// Masks, bias and penalties, in the order of ockham.core.sampling_params.
void process(const float* logits, int64_t vocabulary, const DrawView& draw,
             std::vector<double>& z) {
    z.assign(logits, logits + vocabulary);
    if (draw.has_allowed) {
        std::fill(z.begin(), z.end(), -infinity);
        for (const int64_t id : draw.allowed) z[id] = logits[id];
    }
    if (draw.mask != nullptr)
        for (int64_t first = 0; first < vocabulary; first += 32) {
            const uint32_t bits = draw.mask[first / 32];
            if (bits == ~uint32_t{0}) continue;
            const int64_t stop = std::min(first + 32, vocabulary);
            for (int64_t id = first; id < stop; ++id)
                if ((bits >> (id - first) & 1) == 0) z[id] = -infinity;
        }
    for (const int64_t id : draw.forbidden) z[id] = -infinity;
    for (size_t i = 0; i < draw.biased.size(); ++i) z[draw.biased[i]] += draw.biases[i];
    if (draw.repetition_penalty != 1.0)
        for (const int64_t id : draw.seen)
            z[id] = z[id] > 0.0 ? z[id] / draw.repetition_penalty : z[id] * draw.repetition_penalty;
    for (size_t i = 0; i < draw.output.size(); ++i)
        z[draw.output[i]] -= draw.frequency_penalty * static_cast<double>(draw.output_counts[i]) +
                             draw.presence_penalty;
}

// The `count` largest of the ids whose z is at least `least`, the lowest ids of those that tie for the
// last place, ascending.
void keep_largest(const std::vector<double>& z, double least, int64_t count,
                  std::vector<int64_t>& ids) {
    // A heap with the worst kept id at its front. An id that comes later loses a tie.
    const auto better = [&](int64_t a, int64_t b) { return z[a] != z[b] ? z[a] > z[b] : a < b; };
    for (int64_t id = 0; id < static_cast<int64_t>(z.size()); ++id) {
        if (!(z[id] >= least)) continue;
        if (static_cast<int64_t>(ids.size()) < count) {
            ids.push_back(id);
            std::push_heap(ids.begin(), ids.end(), better);
            if (static_cast<int64_t>(ids.size()) == count) least = z[ids.front()];
        } else if (z[id] > least) {
            std::pop_heap(ids.begin(), ids.end(), better);
            ids.back() = id;
            std::push_heap(ids.begin(), ids.end(), better);
            least = z[ids.front()];
        }
    }
    std::sort(ids.begin(), ids.end());
}

// Keeps the likeliest of the ascending ids, up to and including the one at which their share reaches
// top_p. They are taken off a heap one by one: few are needed, however large the vocabulary.
void keep_share(std::vector<int64_t>& ids, const std::vector<double>& z, double best,
                double top_p) {
    double total = 0.0;
    for (const int64_t id : ids) total += natural_exp(std::max(z[id] - best, -700.0));
    const double target = top_p * total;
    const auto later = [&](int64_t a, int64_t b) { return z[a] != z[b] ? z[a] < z[b] : a > b; };
    std::vector<int64_t> kept;
    double cumulative = 0.0;
    for (const bool near : {true, false}) {
        std::vector<int64_t> heap;
        for (const int64_t id : ids)
            if ((z[id] >= best - tail) == near) heap.push_back(id);
        std::make_heap(heap.begin(), heap.end(), later);
        while (!heap.empty() && (kept.empty() || cumulative < target)) {
            std::pop_heap(heap.begin(), heap.end(), later);
            cumulative += natural_exp(std::max(z[heap.back()] - best, -700.0));
            kept.push_back(heap.back());
            heap.pop_back();
        }
        if (cumulative >= target) break;
    }
    std::sort(kept.begin(), kept.end());
    ids = std::move(kept);
}

// Steps 2 to 7, for one row.
int64_t choose(Isa isa, const float* logits, int64_t vocabulary, const DrawView& draw,
               SamplerScratch& scratch) {
    std::vector<double>& z = scratch.z;
    std::vector<double>& chosen = scratch.chosen;
    std::vector<int64_t>& ids = scratch.ids;
    process(logits, vocabulary, draw, z);
    const int64_t first = std::max_element(z.begin(), z.end()) - z.begin();
    if (z[first] == -infinity) return no_token;
    if (draw.temperature == 0.0) return first;

    for (double& value : z) value /= draw.temperature;
    const double best = z[first];
    if (!std::isfinite(best)) return first;  // a bias or a tiny temperature left no comparison
    ids.clear();
    const bool unfiltered = draw.min_p == 0.0 && draw.top_k <= 0 && draw.top_p >= 1.0;
    const double least = unfiltered        ? best - noise_span
                         : draw.min_p > 0.0 ? best + natural_log(draw.min_p)
                                            : -std::numeric_limits<double>::max();
    if (draw.top_k > 0) {
        keep_largest(z, least, draw.top_k, ids);
    } else {
        for (int64_t id = 0; id < vocabulary; ++id)
            if (z[id] >= least) ids.push_back(id);
    }
    if (draw.top_p < 1.0) keep_share(ids, z, best, draw.top_p);
    chosen.clear();
    for (const int64_t id : ids) chosen.push_back(z[id]);
    return draw_token(isa, ids, chosen, best, draw);
}

}  // namespace

double natural_log(double x) {
    // fdlibm's e_log.c (Sun Microsystems, 1993): x = 2^k (1 + f), sqrt(1/2) < 1 + f < sqrt(2).
    constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
    uint64_t bits = bits_of(x);
    int k = static_cast<int>(bits >> 52) - 1023;
    bits = (bits & 0x000FFFFFFFFFFFFFull) | 0x3FF0000000000000ull;
    double m = from_bits(bits);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        ++k;
    }
    const double f = m - 1.0, s = f / (2.0 + f), z = s * s, w = z * z;
    const double even = w * (3.999999999940941908e-01 +
                             w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    const double odd =
        z * (6.666666666666735130e-01 +
             w * (2.857142874366239149e-01 +
                  w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    const double half = 0.5 * f * f, rest = even + odd, n = k;
    return n * ln2_high - ((half - (s * (half + rest) + n * ln2_low)) - f);
}

double natural_exp(double x) {
    // fdlibm's e_exp.c: x = k ln 2 + r, and a rational approximation of e^r.
    constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
    const double k = std::floor(x * 1.44269504088896338700e+00 + 0.5);
    const double high = x - k * ln2_high, low = k * ln2_low, r = high - low, t = r * r;
    const double c =
        r - t * (1.66666666666666019037e-01 +
                 t * (-2.77777777770155933842e-03 +
                      t * (6.61375632143793436117e-05 +
                           t * (-1.65339022054652515390e-06 + t * 4.13813679705723846039e-08))));
    const double y = 1.0 - ((low - (r * c) / (2.0 - c)) - high);
    // In two factors, because 2^k alone may not be a normal number where the result is.
    const int whole = static_cast<int>(k), part = whole / 2;
    return y * from_bits(static_cast<uint64_t>(1023 + part) << 52) *
           from_bits(static_cast<uint64_t>(1023 + whole - part) << 52);
}

double gumbel(uint32_t word) {
    const double uniform = (static_cast<double>(word) + 0.5) * (1.0 / 4294967296.0);
    return -natural_log(-natural_log(uniform));
}

void noise_words(Isa isa, uint64_t seed, uint32_t stream, uint32_t position, const int64_t* tokens,
                 int64_t count, uint32_t* words) {
    DrawView draw;
    draw.seed = seed;
    draw.stream = stream;
    draw.position = position;
    Noise noise(isa, draw);
    for (int64_t i = 0; i < count; ++i) words[i] = noise.word(tokens[i]);
}

int64_t sample(Isa isa, const float* logits, int64_t vocabulary, const DrawView& draw,
               SamplerScratch& scratch) {
    const int64_t largest = row_kernels(isa).argmax(logits, vocabulary);
    if (!std::isfinite(logits[largest])) return not_finite;
    if (draw.plain_greedy()) return largest;
    return choose(isa, logits, vocabulary, draw, scratch);
}

}  // namespace ockham
