#include "kernels/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "kernels/kernels.h"

namespace ockham {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Where probes leave their results, so that no compiler finds them useless.
std::atomic<uint64_t> residue{0};

}  // namespace

double arithmetic_rate(ThreadPool& pool, Isa isa, Rate rate, double seconds) {
    const LimitKernels& kernels = limit_kernels(isa);
    const auto probe = rate == Rate::fp32   ? kernels.fp32
                       : rate == Rate::bf16 ? kernels.bf16
                                            : kernels.int8;
    constexpr int64_t rounds = 1000;
    std::atomic<double> operations{0.0};
    const auto start = Clock::now();
    pool.parallel(pool.size(), [&](int64_t, int) {
        alignas(64) float sink[64] = {};  // what the probes read and write
        double done = 0;
        do done += probe(rounds, sink);
        while (seconds_since(start) < seconds);
        double before = operations.load();
        while (!operations.compare_exchange_weak(before, before + done)) {
        }
        residue += static_cast<uint64_t>(sink[0]);
    });
    return operations.load() / seconds_since(start);
}

double read_rate(ThreadPool& pool, Isa isa, const void* from, int64_t bytes) {
    constexpr int64_t piece_bytes = 1 << 18;
    const auto read = limit_kernels(isa).read;
    const int64_t pieces = bytes / piece_bytes;
    const auto start = Clock::now();
    pool.parallel(pieces, [&](int64_t piece, int) {
        residue += read(static_cast<const char*>(from) + piece * piece_bytes, piece_bytes);
    });
    return static_cast<double>(pieces * piece_bytes) / seconds_since(start);
}

}  // namespace ockham
