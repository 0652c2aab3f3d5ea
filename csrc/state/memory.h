// Memory of the executor: aligned, grown on demand, reused from step to step.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ockham {

// Zeroed memory that the system backs only once it is touched, in huge pages where it can.
class Pages {
   public:
    Pages() = default;
    explicit Pages(size_t bytes) : bytes_(bytes) {
        if (bytes == 0) return;
#if defined(__linux__)
        void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        madvise(memory, bytes, MADV_HUGEPAGE);
        data_ = static_cast<uint8_t*>(memory);
#else
        data_ = static_cast<uint8_t*>(std::calloc(bytes, 1));
        if (data_ == nullptr) throw std::bad_alloc();
#endif
    }
    ~Pages() { release(); }
    Pages(Pages&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Pages& operator=(Pages&& other) noexcept {
        if (this != &other) {
            release();
            data_ = std::exchange(other.data_, nullptr);
            bytes_ = std::exchange(other.bytes_, 0);
        }
        return *this;
    }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;

    uint8_t* data() const { return data_; }
    size_t bytes() const { return bytes_; }

   private:
    void release() {
        if (data_ == nullptr) return;
#if defined(__linux__)
        munmap(data_, bytes_);
#else
        std::free(data_);
#endif
    }

    uint8_t* data_ = nullptr;
    size_t bytes_ = 0;
};

// Scratch of one kind. What it holds is lost when it grows.
class Buffer {
   public:
    Buffer() = default;
    ~Buffer() { std::free(data_); }
    Buffer(Buffer&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Buffer& operator=(Buffer&&) = delete;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    // At least `count` elements, aligned to a cache line.
    template <class T>
    T* take(int64_t count) {
        const size_t wanted = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
        if (wanted > bytes_) {
            std::free(data_);
            data_ = nullptr;
            bytes_ = 0;
            data_ = std::aligned_alloc(64, wanted);
            if (data_ == nullptr) throw std::bad_alloc();
            bytes_ = wanted;
        }
        return static_cast<T*>(data_);
    }
    template <class T>
    T* get() const {
        return static_cast<T*>(data_);
    }

   private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace ockham
