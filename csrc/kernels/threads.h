// A pool of threads that shares the tasks of one loop at a time.
//
// The caller is thread 0 and works too. Tasks are handed out one by one through an atomic counter, so
// a thread that the operating system takes away delays nobody but its own task; a worker that has
// not woken when the tasks run out is not waited for. Workers spin for some microseconds after a
// loop, because the next one usually follows at once, and then sleep: an idle pool uses no core.
//
// A process that was forked has none of its parent's threads. A pool notices that, starts threads of
// its own when the child first gives it a loop, and joins none that the child does not have.
#pragma once

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

namespace ockham {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// How often this process was forked off another since the library was loaded.
inline std::atomic<uint64_t>& forks() {
    static std::atomic<uint64_t> count{0};
    static const int registered =
        pthread_atfork(nullptr, nullptr, [] { forks().fetch_add(1, std::memory_order_relaxed); });
    (void)registered;
    return count;
}

class ThreadPool {
   public:
    // `threads` counts the caller: 1 starts none. Where the system grants fewer, there are fewer.
    explicit ThreadPool(int threads, std::chrono::microseconds spin = std::chrono::microseconds(100))
        : spin_(spin), forks_(forks().load()) {
        start(threads);
        size_ = static_cast<int>(workers_->threads.size()) + 1;
    }

    ~ThreadPool() {
        if (forks_ != forks().load()) {
            (void)workers_.release();
            return;
        }
        stop_.store(true);
        epoch_.fetch_add(2);  // stays even: there is no job, but sleepers see a change
        wake();
        for (std::thread& worker : workers_->threads) worker.join();
    }

    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    // The most threads that a loop has, the caller included.
    int size() const { return size_; }

    // Calls f(task, thread) for each task in [0, tasks), in any order, and returns when all are done.
    // Writes of the tasks are visible to the caller afterwards. `f` must not throw and must not call
    // parallel() of the same pool; two threads must not call parallel() at the same time.
    template <class F>
    void parallel(int64_t tasks, F&& f) {
        if (forks_ != forks().load(std::memory_order_relaxed)) restart();
        if (workers_->threads.empty() || tasks <= 1) {
            for (int64_t task = 0; task < tasks; ++task) f(task, 0);
            return;
        }
        using Function = std::remove_reference_t<F>;
        run_ = [](void* context, int64_t task, int thread) {
            (*static_cast<Function*>(context))(task, thread);
        };
        context_ = const_cast<void*>(static_cast<const void*>(&f));
        tasks_ = tasks;
        next_.store(0, std::memory_order_relaxed);
        epoch_.fetch_add(1);  // odd: the job is open
        if (sleepers_.load() > 0) wake();
        drain(0);
        epoch_.fetch_add(1);  // even: closed; who enters from now on leaves without touching the job
        while (inside_.load() != 0) relax();
    }

   private:
    struct Workers {
        std::vector<std::thread> threads;
        std::mutex mutex;
        std::condition_variable awake;
    };

    void start(int threads) {
        workers_ = std::make_unique<Workers>();
        workers_->threads.reserve(threads > 1 ? threads - 1 : 0);
        try {
            for (int thread = 1; thread < threads; ++thread)
                workers_->threads.emplace_back([this, thread] { work(thread); });
        } catch (const std::system_error&) {
            // Results do not depend on the number of threads: those that there are share the work.
        }
    }

    // In a forked child. The parent's threads are gone; what they held and waited for may be in any
    // state, so it is left alone for good. No loop runs here: the child's only thread is the caller.
    void restart() {
        forks_ = forks().load();
        (void)workers_.release();
        epoch_.store(0);
        inside_.store(0);
        sleepers_.store(0);
        start(size_);
    }

    void wake() {
        {
            std::lock_guard<std::mutex> lock(workers_->mutex);
        }
        workers_->awake.notify_all();
    }

    void drain(int thread) {
        for (;;) {
            const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
            if (task >= tasks_) return;
            run_(context_, task, thread);
        }
    }

    void work(int thread) {
        uint64_t seen = 0;
        while (await(seen)) {
            // The order matters and is sequentially consistent: we enter and then look whether the
            // job is open; the caller closes it and then looks whether anyone is inside.
            inside_.fetch_add(1);
            seen = epoch_.load();
            if (seen & 1) drain(thread);
            inside_.fetch_sub(1);
        }
    }

    // Waits for the epoch to differ from `seen`; false when the pool ends.
    bool await(uint64_t seen) {
        const auto started = std::chrono::steady_clock::now();
        do {
            for (int i = 0; i < 64; ++i) {
                if (epoch_.load() != seen || stop_.load()) return !stop_.load();
                relax();
            }
        } while (std::chrono::steady_clock::now() - started < spin_);
        std::unique_lock<std::mutex> lock(workers_->mutex);
        sleepers_.fetch_add(1);
        // A worker that was late for the last job may have seen the epoch of the end already.
        workers_->awake.wait(lock, [&] { return epoch_.load() != seen || stop_.load(); });
        sleepers_.fetch_sub(1);
        return !stop_.load();
    }

    const std::chrono::microseconds spin_;
    std::unique_ptr<Workers> workers_;
    int size_ = 1;
    uint64_t forks_;  // of the process that the workers belong to
    // Each on its own cache line: the counter is fought over while the epoch is only watched.
    alignas(64) std::atomic<uint64_t> epoch_{0};
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> inside_{0};
    std::atomic<int> sleepers_{0};
    alignas(64) std::atomic<bool> stop_{false};
    // The job. Written by the caller while no worker is inside, read by workers that found it open.
    void (*run_)(void*, int64_t, int) = nullptr;
    void* context_ = nullptr;
    int64_t tasks_ = 0;
};

}  // namespace ockham
