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

namespace {

// The elements [begin, begin + width) of `count` tokens' keys and values in one head, as bits of the
// planes' type: a token's keys begin at keys + i * stride.
template <class T>
struct Columns {
    int64_t begin, width, count, stride;
    const T* keys;
    const T* values;
};

void put(const LayerPlane& plane, int64_t lane, const Columns<uint32_t>& from, uint8_t* to_keys,
         uint8_t* to_values) {
    uint32_t* keys = reinterpret_cast<uint32_t*>(to_keys) + from.begin * group_keys + lane;
    for (int64_t e = 0; e < from.width; ++e)
        for (int64_t i = 0; i < from.count; ++i)
            keys[e * group_keys + i] = from.keys[i * from.stride + e];
    uint32_t* values = reinterpret_cast<uint32_t*>(to_values) + lane * plane.width + from.begin;
    for (int64_t i = 0; i < from.count; ++i)
        std::copy_n(from.values + i * from.stride, from.width, values + i * plane.width);
}

// In pairs, as KeyGroup says: of elements of a key, of keys for a value.
void put(const LayerPlane& plane, int64_t lane, const Columns<uint16_t>& from, uint8_t* to_keys,
         uint8_t* to_values) {
    uint16_t* keys = reinterpret_cast<uint16_t*>(to_keys);
    const int64_t whole = from.width / 2 * 2;
    for (int64_t e = 0; e < whole; e += 2)
        for (int64_t i = 0; i < from.count; ++i)
            std::memcpy(keys + plane.key_place(lane + i, from.begin + e),
                        from.keys + i * from.stride + e, 4);
    for (int64_t i = 0; whole < from.width && i < from.count; ++i)
        keys[plane.key_place(lane + i, from.begin + whole)] = from.keys[i * from.stride + whole];
    uint16_t* values = reinterpret_cast<uint16_t*>(to_values);
    for (int64_t i = 0; i < from.count;) {
        uint16_t* to = values + plane.value_place(lane + i, from.begin);
        const uint16_t* first = from.values + i * from.stride;
        if ((lane + i) % 2 == 0 && i + 1 < from.count) {
            const uint16_t* second = first + from.stride;
            for (int64_t e = 0; e < from.width; ++e) {
                to[2 * e] = first[e];
                to[2 * e + 1] = second[e];
            }
            i += 2;
            continue;
        }
        for (int64_t e = 0; e < from.width; ++e) to[2 * e] = first[e];
        i += 1;
    }
}

}  // namespace

void LayerPlane::store_run(const RowKernels& kernels, int64_t slot, int64_t count, const float* k,
                           const float* v, int64_t stride) const {
    const int64_t first_lane = lane(slot);
    uint8_t* to_keys = key_group(slot, 0);
    if (!bf16) {
        for (int64_t head = 0; head < kv_heads; ++head, to_keys += 2 * side_bytes) {
            const auto bits = [&](const float* x) {
                return reinterpret_cast<const uint32_t*>(x + head * head_dim);
            };
            put(*this, first_lane, Columns<uint32_t>{0, head_dim, count, stride, bits(k), bits(v)},
                to_keys, to_keys + side_bytes);
        }
        return;
    }
    // Rows are rounded many elements at once: several heads of them, or a part of a wide one.
    constexpr int64_t most = 512;
    uint16_t keys[group_keys * most], values[group_keys * most];
    const int64_t part = std::min(head_dim, most), heads_at_once = most / part;
    for (int64_t head = 0; head < kv_heads; head += heads_at_once) {
        const int64_t heads = std::min(heads_at_once, kv_heads - head);
        for (int64_t begin = 0; begin < head_dim; begin += part) {
            const int64_t width = std::min(part, head_dim - begin);
            const int64_t from = head * head_dim + begin;
            for (int64_t i = 0; i < count; ++i) {
                kernels.to_bf16(k + i * stride + from, heads * width, keys + i * most);
                kernels.to_bf16(v + i * stride + from, heads * width, values + i * most);
            }
            for (int64_t h = 0; h < heads; ++h) {
                uint8_t* to = to_keys + (head + h) * 2 * side_bytes;
                put(*this, first_lane,
                    Columns<uint16_t>{begin, width, count, most, keys + h * width,
                                      values + h * width},
                    to, to + side_bytes);
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

void Planes::copy(int64_t group, int64_t head, int64_t index, const int64_t* source,
                  const int64_t* target, int64_t count) {
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
        const int64_t layers = static_cast<int64_t>(shape.layers.size());
        for (int64_t i = std::max<int64_t>(index, 0); i < (index < 0 ? layers : index + 1); ++i) {
            const LayerPlane layer = plane(group, i);
            for (int64_t n = 0; n < count; ++n)
                read_token(layer, first, last, source[n], keys + n * row, values + n * row);
            for (int64_t n = 0; n < count; ++n)
                write_token(layer, first, last, target[n], keys + n * row, values + n * row);
        }
    });
}

}  // namespace ockham
