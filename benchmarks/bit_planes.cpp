// Products of integers by planes of bits of +-1 (Bipolar-INT, arXiv:2409.17870), beside products of 8-bit
// inputs: see bit_planes.py. One row times one column, again and again, both in the first-level cache.
//
// A bipolar integer of n bits is the sum of 2^i p_i with p_i = +-1, so that a product of two is the sum
// of 2^(i + j) p_i q_j, and a sum over K of p_i q_j is K - 2 popcount(p_i xor q_j). There is no zero point.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <immintrin.h>

static __m256i popcount_bytes(__m256i bits) {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i low = _mm256_set1_epi8(15);
    return _mm256_add_epi8(
        _mm256_shuffle_epi8(table, _mm256_and_si256(bits, low)),
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bits, 4), low)));
}

static int64_t lanes(__m256i sum) {
    alignas(32) int64_t all[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(all), sum);
    return all[0] + all[1] + all[2] + all[3];
}

// w: [weight_bits][K / 8], x: [input_bits][K / 8].
static int64_t by_planes(const uint8_t* w, const uint8_t* x, int64_t k, int weight_bits, int input_bits) {
    int64_t total = 0;
    for (int i = 0; i < weight_bits; ++i)
        for (int j = 0; j < input_bits; ++j) {
            const __m256i* p = reinterpret_cast<const __m256i*>(w + i * (k / 8));
            const __m256i* q = reinterpret_cast<const __m256i*>(x + j * (k / 8));
            __m256i sum = _mm256_setzero_si256(), bytes = sum;
            for (int64_t n = 0; n < k / 256; ++n) {
                const __m256i differ = _mm256_xor_si256(_mm256_loadu_si256(p + n), _mm256_loadu_si256(q + n));
                bytes = _mm256_add_epi8(bytes, popcount_bytes(differ));  // at most 8 each, so 31 times
                if (n % 31 == 30 || n == k / 256 - 1) {
                    sum = _mm256_add_epi64(sum, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
                    bytes = _mm256_setzero_si256();
                }
            }
            total += (k - 2 * lanes(sum)) << (i + j);
        }
    return total;
}

// w: [K] unsigned codes of 4 bits at most, one a byte (unpacked: that is a few more instructions for all
// rows together); x: [K] int8. Sums of 16 bits are widened after eight.
static int64_t by_bytes(const uint8_t* w, const uint8_t* x, int64_t k) {
    const __m256i* a = reinterpret_cast<const __m256i*>(w);
    const __m256i* b = reinterpret_cast<const __m256i*>(x);
    __m256i sum = _mm256_setzero_si256();
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t n = 0; n < k / 32; n += 8) {
        __m256i part = _mm256_setzero_si256();
        for (int i = 0; i < 8; ++i)
            part = _mm256_add_epi16(part, _mm256_maddubs_epi16(_mm256_loadu_si256(a + n + i),
                                                               _mm256_loadu_si256(b + n + i)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(part, ones));
    }
    alignas(32) int32_t all[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(all), sum);
    int64_t total = 0;
    for (const int32_t lane : all) total += lane;
    return total;
}

template <class F>
static double best(F product) {
    using Clock = std::chrono::steady_clock;
    double least = 1e9;
    volatile int64_t sink = 0;
    for (int round = 0; round < 200; ++round) {
        const auto start = Clock::now();
        for (int i = 0; i < 200; ++i) sink = sink + product();
        const double took = std::chrono::duration<double>(Clock::now() - start).count() / 200;
        least = took < least ? took : least;
    }
    return least;
}

// From stdin K, the bits of weights and inputs, then the weights and inputs (bipolar: odd numbers). Prints
// the product by planes, and the seconds of it and of a product of 8-bit inputs of this length.
int main() {
    long long k;
    int weight_bits, input_bits;
    if (std::scanf("%lld %d %d", &k, &weight_bits, &input_bits) != 3 || k < 256 || k % 256) return 1;
    const auto memory = [](int64_t bytes) {
        return static_cast<uint8_t*>(std::calloc(static_cast<size_t>(bytes), 1));
    };
    uint8_t *w = memory(weight_bits * k / 8), *x = memory(input_bits * k / 8), *bytes = memory(k);
    const auto read = [&](uint8_t* planes, int bits) {
        for (long long n = 0; n < k; ++n) {
            int value;
            if (std::scanf("%d", &value) != 1) std::exit(1);
            const int raised = (value + (1 << bits) - 1) / 2;  // its bits are those that are +1
            for (int i = 0; i < bits; ++i)
                if (raised >> i & 1) planes[i * (k / 8) + n / 8] |= static_cast<uint8_t>(1 << n % 8);
        }
    };
    read(w, weight_bits);
    read(x, input_bits);
    for (long long n = 0; n < k; ++n) bytes[n] = static_cast<uint8_t>(n % 16);
    const double planes = best([&] { return by_planes(w, x, k, weight_bits, input_bits); });
    const double plain = best([&] { return by_bytes(bytes, bytes, k); });
    std::printf("%lld %.9g %.9g\n", static_cast<long long>(by_planes(w, x, k, weight_bits, input_bits)),
                planes, plain);
}
