#include "state/planes.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace ockham {

namespace {

// Calls f with a zero of the planes' element type, as unsigned bits.
template <class F>
void with_bits(Element element, F f) {
    if (element == Element::bf16)
        f(uint16_t{});
    else
        f(uint32_t{});
}

// One token's state, of the heads [first, last), between the planes and rows of
// (2, last - first, head_dim).
template <class T>
void read_token(const LayerPlane& plane, int64_t first, int64_t last, int64_t slot, T* keys,
                T* values) {
    const int64_t lane = plane.lane(slot);
    for (int64_t head = first; head < last; ++head) {
        const T* from_keys = reinterpret_cast<const T*>(plane.key_group(slot, head));
        const T* from_values = reinterpret_cast<const T*>(plane.value_group(slot, head));
        for (int64_t e = 0; e < plane.head_dim; ++e) {
            *keys++ = from_keys[plane.key_place(lane, e)];
            *values++ = from_values[plane.value_place(lane, e)];
        }
    }
}

template <class T>
void write_token(const LayerPlane& plane, int64_t first, int64_t last, int64_t slot, const T* keys,
                 const T* values) {
    const int64_t lane = plane.lane(slot);
    for (int64_t head = first; head < last; ++head) {
        T* to_keys = reinterpret_cast<T*>(plane.key_group(slot, head));
        T* to_values = reinterpret_cast<T*>(plane.value_group(slot, head));
        for (int64_t e = 0; e < plane.head_dim; ++e) {
            to_keys[plane.key_place(lane, e)] = *keys++;
            to_values[plane.value_place(lane, e)] = *values++;
        }
    }
}

}  // namespace

void LayerPlane::store(const RowKernels& kernels, int64_t slot, const float* k,
                       const float* v) const {
    if (!bf16) {
        write_token(*this, 0, kv_heads, slot, k, v);
        return;
    }
    constexpr int64_t most = 512;
    uint16_t keys[most], row[most];
    const int64_t lane = this->lane(slot);
    for (int64_t head = 0; head < kv_heads; ++head) {
        uint16_t* to_keys = reinterpret_cast<uint16_t*>(key_group(slot, head));
        uint16_t* to_values = reinterpret_cast<uint16_t*>(value_group(slot, head));
        for (int64_t begin = 0; begin < head_dim; begin += most) {
            const int64_t count = std::min(most, head_dim - begin);
            kernels.to_bf16(k + head * head_dim + begin, count, keys);
            kernels.to_bf16(v + head * head_dim + begin, count, row);
            for (int64_t e = 0; e < count; ++e) {
                to_keys[key_place(lane, begin + e)] = keys[e];
                to_values[value_place(lane, begin + e)] = row[e];
            }
        }
    }
}

Planes::Planes(const std::vector<GroupShape>& groups) : shapes_(groups) {
    for (const GroupShape& shape : shapes_) {
        if (shape.kv_heads < 1 || shape.head_dim < 1 || shape.pages < 0 || shape.page_tokens < 1)
            throw std::invalid_argument("a group of layers has a size below one.");
        memory_.emplace_back();
        const LayerPlane one = plane(static_cast<int64_t>(memory_.size()) - 1, 0);
        memory_.back() = Pages(shape.layers.size() * static_cast<size_t>(one.pages) *
                               static_cast<size_t>(one.page_bytes));
    }
}

LayerPlane Planes::plane(int64_t group, int64_t index) const {
    const GroupShape& shape = shapes_[group];
    LayerPlane plane;
    plane.kv_heads = shape.kv_heads;
    plane.head_dim = shape.head_dim;
    plane.width = padded(shape.head_dim);
    plane.pages = shape.pages;
    plane.page_tokens = shape.page_tokens;
    plane.bf16 = shape.element == Element::bf16;
    plane.element_bytes = element_bytes(shape.element);
    plane.group_bytes = group_keys * plane.width * plane.element_bytes;
    plane.side_bytes = padded(shape.page_tokens) / group_keys * plane.group_bytes;
    plane.page_bytes = 2 * shape.kv_heads * plane.side_bytes;
    if (memory_[group].data() != nullptr)
        plane.data = memory_[group].data() + index * plane.pages * plane.page_bytes;
    return plane;
}

LayerPlane Planes::layer(int64_t layer) const {
    const int64_t group = group_of(layer);
    const std::vector<int64_t>& layers = shapes_[group].layers;
    return plane(group, std::find(layers.begin(), layers.end(), layer) - layers.begin());
}

int64_t Planes::group_of(int64_t layer) const {
    for (size_t group = 0; group < shapes_.size(); ++group)
        for (int64_t held : shapes_[group].layers)
            if (held == layer) return static_cast<int64_t>(group);
    throw std::invalid_argument("no group of the planes holds layer " + std::to_string(layer) +
                                ".");
}

int64_t Planes::slots(int64_t group) const {
    return shapes_[group].pages * shapes_[group].page_tokens;
}

void Planes::read(int64_t group, const int64_t* slots, int64_t count, void* state) const {
    const GroupShape& shape = shapes_[group];
    const int64_t row = shape.kv_heads * shape.head_dim;
    with_bits(shape.element, [&](auto zero) {
        using T = decltype(zero);
        for (size_t i = 0; i < shape.layers.size(); ++i) {
            T* keys = static_cast<T*>(state) + static_cast<int64_t>(i) * 2 * count * row;
            const LayerPlane from = plane(group, static_cast<int64_t>(i));
            for (int64_t n = 0; n < count; ++n)
                read_token(from, 0, shape.kv_heads, slots[n], keys + n * row, keys + (count + n) * row);
        }
    });
}

void Planes::write(int64_t group, const int64_t* slots, int64_t count, const void* state) {
    const GroupShape& shape = shapes_[group];
    const int64_t row = shape.kv_heads * shape.head_dim;
    with_bits(shape.element, [&](auto zero) {
        using T = decltype(zero);
        for (size_t i = 0; i < shape.layers.size(); ++i) {
            const T* keys = static_cast<const T*>(state) + static_cast<int64_t>(i) * 2 * count * row;
            const LayerPlane to = plane(group, static_cast<int64_t>(i));
            for (int64_t n = 0; n < count; ++n)
                write_token(to, 0, shape.kv_heads, slots[n], keys + n * row, keys + (count + n) * row);
        }
    });
}

int64_t Planes::stored_page_bytes(int64_t group) const {
    return static_cast<int64_t>(shapes_[group].layers.size()) * plane(group, 0).page_bytes;
}

void Planes::read_pages(int64_t group, const int64_t* pages, int64_t count, uint8_t* data,
                        int64_t stride) const {
    for (size_t i = 0; i < shapes_[group].layers.size(); ++i) {
        const LayerPlane from = plane(group, static_cast<int64_t>(i));
        uint8_t* to = data + static_cast<int64_t>(i) * from.page_bytes;
        for (int64_t n = 0; n < count; ++n)
            std::memcpy(to + n * stride, from.data + pages[n] * from.page_bytes, from.page_bytes);
    }
}

void Planes::write_pages(int64_t group, const int64_t* pages, int64_t count, const uint8_t* data,
                         int64_t stride) {
    for (size_t i = 0; i < shapes_[group].layers.size(); ++i) {
        const LayerPlane to = plane(group, static_cast<int64_t>(i));
        const uint8_t* from = data + static_cast<int64_t>(i) * to.page_bytes;
        for (int64_t n = 0; n < count; ++n)
            std::memcpy(to.data + pages[n] * to.page_bytes, from + n * stride, to.page_bytes);
    }
}

void Planes::back(int64_t group, int64_t index, int64_t pages) const {
#if defined(__linux__) && defined(MADV_POPULATE_WRITE)
    const LayerPlane layer = plane(group, index);
    const auto size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<uintptr_t>(layer.data) / size * size;
    const auto end = reinterpret_cast<uintptr_t>(layer.data + pages * layer.page_bytes);
    // An older system does not know how to, and then it is done when somebody writes.
    if (end > begin) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_WRITE);
#else
    (void)group, (void)index, (void)pages;
#endif
}

void Planes::copy(int64_t group, int64_t head, const int64_t* source, const int64_t* target,
                  int64_t count) {
    // All is read before anything is written, because sources and targets may overlap; a layer at a
    // time, which bounds the memory.
    const GroupShape& shape = shapes_[group];
    const int64_t first = std::max<int64_t>(head, 0);
    const int64_t last = head < 0 ? shape.kv_heads : head + 1;
    const int64_t row = (last - first) * shape.head_dim;
    Buffer buffer;
    with_bits(shape.element, [&](auto zero) {
        using T = decltype(zero);
        T* keys = buffer.take<T>(2 * count * row);
        T* values = keys + count * row;
        for (size_t i = 0; i < shape.layers.size(); ++i) {
            const LayerPlane layer = plane(group, static_cast<int64_t>(i));
            for (int64_t n = 0; n < count; ++n)
                read_token(layer, first, last, source[n], keys + n * row, values + n * row);
            for (int64_t n = 0; n < count; ++n)
                write_token(layer, first, last, target[n], keys + n * row, values + n * row);
        }
    });
}

}  // namespace ockham
