#include "state/planes.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

#include "kernels/halves.h"
#include "state/alike.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace ockham {

namespace {

// Where the rows of one layer's tokens stand outside of the planes, as Planes::read gives them.
template <class T>
struct Rows {
    T* keys;
    T* values;
    int64_t head_stride;
    int64_t token_stride;

    // Only of layers that keep keys and values.
    Rows(const LayerPlane& plane, T* data, int64_t heads, int64_t count) {
        const int64_t key = plane.k.row_bytes(), value = plane.v.row_bytes();
        const bool apart = key == value || plane.latent;
        head_stride = apart ? key : key + value;
        token_stride = heads * head_stride;
        keys = data;
        values = data + (apart ? count * token_stride : key);
    }
    static int64_t bytes(const LayerPlane& plane, int64_t heads, int64_t count) {
        if (plane.row_floats > 0) return count * plane.row_floats * static_cast<int64_t>(sizeof(float));
        const int64_t values = plane.latent ? 0 : plane.v.row_bytes();
        return count * heads * (plane.k.row_bytes() + values);
    }
};

// The state of some slots, of the heads [first, last), to rows and back.
void read_rows(const LayerPlane& plane, int64_t first, int64_t last, const int64_t* slots,
               int64_t count, uint8_t* data) {
    if (plane.row_floats > 0) {
        auto* to = reinterpret_cast<float*>(data);
        for (int64_t n = 0; n < count; ++n, to += plane.row_floats)
            std::copy_n(plane.row(slots[n]), plane.row_floats, to);
        return;
    }
    const Rows<uint8_t> rows(plane, data, last - first, count);
    for (int64_t n = 0; n < count; ++n)
        for (int64_t head = first; head < last; ++head) {
            const int64_t at = n * rows.token_stride + (head - first) * rows.head_stride;
            const int64_t lane = plane.lane(slots[n]);
            plane.k.read(plane.key_group(slots[n], head), lane, rows.keys + at);
            if (!plane.latent)
                plane.v.read(plane.value_group(slots[n], head), lane, rows.values + at);
        }
}

void write_rows(const LayerPlane& plane, int64_t first, int64_t last, const int64_t* slots,
                int64_t count, const uint8_t* data) {
    if (plane.row_floats > 0) {
        const auto* from = reinterpret_cast<const float*>(data);
        for (int64_t n = 0; n < count; ++n, from += plane.row_floats)
            std::copy_n(from, plane.row_floats, plane.row(slots[n]));
        return;
    }
    const Rows<const uint8_t> rows(plane, data, last - first, count);
    for (int64_t n = 0; n < count; ++n) plane.changed(slots[n]);
    for (int64_t n = 0; n < count; ++n)
        for (int64_t head = first; head < last; ++head) {
            const int64_t at = n * rows.token_stride + (head - first) * rows.head_stride;
            const int64_t lane = plane.lane(slots[n]);
            plane.k.write(plane.key_group(slots[n], head), lane, rows.keys + at);
            if (!plane.latent)
                plane.v.write(plane.value_group(slots[n], head), lane, rows.values + at);
        }
}

}  // namespace

namespace {

void page_changed(const LayerPlane& plane, int64_t page) {
    const int64_t first = page * plane.page_tokens;
    for (int64_t slot = first; slot < first + plane.page_tokens; slot += group_keys)
        plane.changed(slot);
}

// The elements [begin, begin + width) of `count` tokens' keys and values in one head, as bits of the
// planes' type: a token's keys begin at keys + i * stride, its values at values + i * v_stride.
template <class T>
struct Columns {
    int64_t begin, width, count, stride, v_stride;
    const T* keys;
    const T* values;
};

void put(const LayerPlane& plane, int64_t lane, const Columns<uint32_t>& from, uint8_t* to_keys,
         uint8_t* to_values) {
    uint32_t* keys = reinterpret_cast<uint32_t*>(to_keys) + from.begin * group_keys + lane;
    for (int64_t e = 0; e < from.width; ++e)
        for (int64_t i = 0; i < from.count; ++i)
            keys[e * group_keys + i] = from.keys[i * from.stride + e];
    if (plane.latent) return;
    uint32_t* values = reinterpret_cast<uint32_t*>(to_values) + lane * plane.width + from.begin;
    for (int64_t i = 0; i < from.count; ++i)
        std::copy_n(from.values + i * from.v_stride, from.width, values + i * plane.width);
}

// In pairs, as KeyGroup says: of elements of a key, of keys for a value.
void put(const LayerPlane& plane, int64_t lane, const Columns<uint16_t>& from, uint8_t* to_keys,
         uint8_t* to_values) {
    uint16_t* keys = reinterpret_cast<uint16_t*>(to_keys);
    const int64_t whole = from.width / 2 * 2;
    for (int64_t e = 0; e < whole; e += 2)
        for (int64_t i = 0; i < from.count; ++i)
            std::memcpy(keys + plane.k.place(lane + i, from.begin + e),
                        from.keys + i * from.stride + e, 4);
    for (int64_t i = 0; whole < from.width && i < from.count; ++i)
        keys[plane.k.place(lane + i, from.begin + whole)] = from.keys[i * from.stride + whole];
    if (plane.latent) return;
    uint16_t* values = reinterpret_cast<uint16_t*>(to_values);
    for (int64_t i = 0; i < from.count;) {
        uint16_t* to = values + plane.v.place(lane + i, from.begin);
        const uint16_t* first = from.values + i * from.v_stride;
        if ((lane + i) % 2 == 0 && i + 1 < from.count) {
            const uint16_t* second = first + from.v_stride;
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
                           const float* v, int64_t stride, int64_t v_stride) const {
    changed(slot);
    const int64_t first_lane = lane(slot);
    uint8_t* to_keys = key_group(slot, 0);
    uint8_t* to_values = latent ? to_keys : value_group(slot, 0);  // where latent, not written
    if (this->k.coded()) {
        for (int64_t i = 0; i < count; ++i)
            for (int64_t head = 0; head < kv_heads; ++head) {
                const float* key = k + i * stride + head * head_dim;
                const float* value = v + i * v_stride + head * head_dim;
                const int64_t of_head = head * head_bytes;
                this->k.encode(kernels, key, mirror(head), to_keys + of_head, first_lane + i);
                this->v.encode(kernels, value, nullptr, to_values + of_head, first_lane + i);
            }
        return;
    }
    if (this->k.element == Element::fp32) {
        for (int64_t head = 0; head < kv_heads; ++head, to_keys += head_bytes, to_values += head_bytes) {
            const auto bits = [&](const float* x) {
                return reinterpret_cast<const uint32_t*>(x + head * head_dim);
            };
            put(*this, first_lane,
                Columns<uint32_t>{0, head_dim, count, stride, v_stride, bits(k), bits(v)}, to_keys,
                to_values);
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
                if (!latent)
                    kernels.to_bf16(v + i * v_stride + from, heads * width, values + i * most);
            }
            for (int64_t h = 0; h < heads; ++h) {
                const int64_t of_head = (head + h) * head_bytes;
                put(*this, first_lane,
                    Columns<uint16_t>{begin, width, count, most, most, keys + h * width,
                                      values + h * width},
                    to_keys + of_head, to_values + of_head);
            }
        }
    }
}

Planes::Planes(const std::vector<GroupShape>& groups) : shapes_(groups) {
    for (const GroupShape& shape : shapes_) {
        if (shape.kv_heads < 1 || shape.head_dim < 1 || shape.pages < 0 || shape.page_tokens < 1)
            throw std::invalid_argument("a group of layers has a size below one.");
        if (shape.row_floats != 0 && (shape.kv_heads != 1 || shape.row_floats != shape.head_dim ||
                                      shape.keys != Element::fp32))
            throw std::invalid_argument("rows of floats are of one head, and of no other type.");
        if (shape.latent && (coded(shape.keys) || shape.row_floats != 0))
            throw std::invalid_argument("values that are keys are stored in no codes.");
        const bool codes = coded(shape.keys), four = shape.keys == Element::int4 || shape.values == Element::int4;
        if (codes != coded(shape.values) || (!codes && shape.keys != shape.values))
            throw std::invalid_argument("keys and values have one type, or both are integers.");
        if (codes && shape.head_dim > most_coded_dim)
            throw std::invalid_argument("heads are too wide for integers.");
        if (four && shape.head_dim % 2 != 0)
            throw std::invalid_argument("an odd number of elements does not fill bytes of two.");
        if (!shape.mirrors.empty() &&
            (shape.keys != Element::int4 ||
             shape.mirrors.size() != shape.layers.size() * static_cast<size_t>(shape.kv_heads * shape.head_dim)))
            throw std::invalid_argument("keys in int4 have a mirror for each layer and head, or none.");
        memory_.emplace_back();
        const LayerPlane one = plane(static_cast<int64_t>(memory_.size()) - 1, 0);
        memory_.back() = Pages(shape.layers.size() * static_cast<size_t>(one.pages) *
                               static_cast<size_t>(one.page_bytes));
        fresh_.emplace_back(shape.layers.size() * static_cast<size_t>(slot_groups(
                                                      static_cast<int64_t>(fresh_.size()))));
    }
}

void LayerPlane::widen_key(const RowKernels& kernels, int64_t slot, int64_t head, float* to) const {
    const uint8_t* group = key_group(slot, head);
    const int64_t at = lane(slot);
    if (k.coded()) {
        k.decode(kernels, group, at, mirror(head), to);
    } else {
        for (int64_t e = 0; e < head_dim; ++e) {
            const int64_t place = k.place(at, e);
            to[e] = k.element == Element::bf16
                        ? from_bf16(reinterpret_cast<const uint16_t*>(group)[place])
                        : reinterpret_cast<const float*>(group)[place];
        }
    }
    std::fill(to + head_dim, to + width, 0.0f);
}

uint8_t* Planes::summaries(int chooser, int64_t layer, int64_t summary_bytes) const {
    const int64_t group = group_of(layer);
    const int64_t of_layer = slot_groups(group) * shapes_[group].kv_heads * summary_bytes;
    Pages& pages = summaries_[{group, chooser}];
    if (pages.data() == nullptr) pages = Pages(shapes_[group].layers.size() * of_layer);
    return pages.data() + index_of(group, layer) * of_layer;
}

LayerPlane Planes::plane(int64_t group, int64_t index) const {
    const GroupShape& shape = shapes_[group];
    LayerPlane plane;
    plane.kv_heads = shape.kv_heads;
    plane.head_dim = shape.head_dim;
    plane.width = padded(shape.head_dim);
    plane.pages = shape.pages;
    plane.page_tokens = shape.page_tokens;
    plane.k = Side(shape.keys, false, shape.head_dim, shape.page_tokens);
    plane.v = Side(shape.values, true, shape.head_dim, shape.page_tokens);
    plane.latent = shape.latent;
    plane.head_bytes = plane.k.page_bytes + (shape.latent ? 0 : plane.v.page_bytes);
    plane.page_bytes = shape.kv_heads * plane.head_bytes;
    plane.row_floats = shape.row_floats;
    if (shape.row_floats > 0)
        plane.page_bytes = shape.page_tokens * shape.row_floats * static_cast<int64_t>(sizeof(float));
    if (!shape.mirrors.empty())
        plane.mirrors = shape.mirrors.data() + index * shape.kv_heads * shape.head_dim;
    if (!shape.books.empty()) plane.books = shape.books.data() + index * shape.kv_heads;
    if (memory_[group].data() != nullptr)
        plane.data = memory_[group].data() + index * plane.pages * plane.page_bytes;
    if (group < static_cast<int64_t>(fresh_.size()) && fresh_[group].data() != nullptr)
        plane.fresh = fresh_[group].data() + index * slot_groups(group);
    return plane;
}

int64_t Planes::index_of(int64_t group, int64_t layer) const {
    const std::vector<int64_t>& layers = shapes_[group].layers;
    return std::find(layers.begin(), layers.end(), layer) - layers.begin();
}

LayerPlane Planes::layer(int64_t layer) const {
    const int64_t group = group_of(layer);
    return plane(group, index_of(group, layer));
}

LayerPlane Planes::layer(int64_t layer, int64_t group) const {
    const bool known = group >= 0 && group < static_cast<int64_t>(shapes_.size());
    const int64_t index = known ? index_of(group, layer) : 0;
    if (!known || index == static_cast<int64_t>(shapes_[static_cast<size_t>(group)].layers.size()))
        throw std::invalid_argument("the planes of layer " + std::to_string(layer) +
                                    " belong to another group.");
    return plane(group, index);
}

int64_t Planes::group_of(int64_t layer) const {
    int64_t first = -1;
    for (size_t i = 0; i < shapes_.size(); ++i) {
        const auto group = static_cast<int64_t>(i);
        const std::vector<int64_t>& layers = shapes_[i].layers;
        if (std::find(layers.begin(), layers.end(), layer) == layers.end()) continue;
        if (shapes_[i].row_floats == 0) return group;
        if (first < 0) first = group;
    }
    if (first >= 0) return first;
    throw std::invalid_argument("no group of the planes holds layer " + std::to_string(layer) +
                                ".");
}

int64_t Planes::slots(int64_t group) const {
    return shapes_[group].pages * shapes_[group].page_tokens;
}

void Planes::read(int64_t group, const int64_t* slots, int64_t count, void* state) const {
    const GroupShape& shape = shapes_[group];
    for (size_t i = 0; i < shape.layers.size(); ++i) {
        const auto index = static_cast<int64_t>(i);
        const LayerPlane from = plane(group, index);
        const int64_t bytes = Rows<uint8_t>::bytes(from, shape.kv_heads, count);
        read_rows(from, 0, shape.kv_heads, slots, count,
                  static_cast<uint8_t*>(state) + index * bytes);
    }
}

void Planes::write(int64_t group, const int64_t* slots, int64_t count, const void* state) {
    const GroupShape& shape = shapes_[group];
    for (size_t i = 0; i < shape.layers.size(); ++i) {
        const auto index = static_cast<int64_t>(i);
        const LayerPlane to = plane(group, index);
        const int64_t bytes = Rows<uint8_t>::bytes(to, shape.kv_heads, count);
        write_rows(to, 0, shape.kv_heads, slots, count,
                   static_cast<const uint8_t*>(state) + index * bytes);
    }
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
        for (int64_t n = 0; n < count; ++n) {
            std::memcpy(to.data + pages[n] * to.page_bytes, from + n * stride, to.page_bytes);
            page_changed(to, pages[n]);
        }
    }
}

void Planes::read_part(int64_t group, int64_t page, int64_t start, int64_t count,
                       uint8_t* data) const {
    const int64_t bytes = plane(group, 0).page_bytes, end = start + count;
    for (int64_t at = start; at < end; at = at / bytes * bytes + bytes) {
        const LayerPlane from = plane(group, at / bytes);
        std::memcpy(data + at - start, from.data + page * bytes + at % bytes,
                    std::min(end - at, bytes - at % bytes));
    }
}

void Planes::write_part(int64_t group, int64_t page, int64_t start, int64_t count,
                        const uint8_t* data) {
    const int64_t bytes = plane(group, 0).page_bytes, end = start + count;
    for (int64_t at = start; at < end; at = at / bytes * bytes + bytes) {
        const LayerPlane to = plane(group, at / bytes);
        std::memcpy(to.data + page * bytes + at % bytes, data + at - start,
                    std::min(end - at, bytes - at % bytes));
        page_changed(to, page);
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

namespace {

void copy_held(Planes::HeldChoices& held, const int64_t* source, const int64_t* target,
               int64_t count) {
    std::vector<std::pair<int64_t, HeldChoice>> found;
    for (int64_t i = 0; i < count; ++i)
        if (const auto from = held.find(source[i]); from != held.end())
            found.emplace_back(target[i], from->second);
    for (int64_t i = 0; i < count; ++i) held.erase(target[i]);
    for (auto& [slot, choice] : found) held[slot] = std::move(choice);
}

}  // namespace

void Planes::copy(int64_t group, int64_t head, int64_t index, const int64_t* source,
                  const int64_t* target, int64_t count) {
    // All is read before anything is written, because sources and targets may overlap; a layer at a
    // time, which bounds the memory.
    const GroupShape& shape = shapes_[group];
    const int64_t first = std::max<int64_t>(head, 0);
    const int64_t last = head < 0 ? shape.kv_heads : head + 1;
    Buffer buffer;
    const auto layers = static_cast<int64_t>(shape.layers.size());
    for (int64_t i = std::max<int64_t>(index, 0); i < (index < 0 ? layers : index + 1); ++i) {
        const LayerPlane layer = plane(group, i);
        uint8_t* rows = buffer.take<uint8_t>(Rows<uint8_t>::bytes(layer, last - first, count));
        read_rows(layer, first, last, source, count, rows);
        write_rows(layer, first, last, target, count, rows);
    }
    if (head >= 0 || index >= 0) return;
    for (auto& [of, held] : held_)
        if (of.first == group && !held.empty()) copy_held(held, source, target, count);
}

std::vector<int32_t> Planes::alike(int64_t group, const int64_t* slots, int64_t count,
                                   int threads) const {
    const GroupShape& shape = shapes_[group];
    // Stored values mean the same on every instruction set.
    const RowKernels& kernels = row_kernels(Isa::portable);
    const int64_t tasks = static_cast<int64_t>(shape.layers.size()) * shape.kv_heads;
    std::vector<int32_t> orders(static_cast<size_t>(tasks * count));
    const auto work = [&](int64_t first, int64_t step) {
        Buffer buffer;
        for (int64_t task = first; task < tasks; task += step) {
            const LayerPlane layer = plane(group, task / shape.kv_heads);
            float* keys = buffer.take<float>(std::max<int64_t>(count, 1) * layer.width);
            for (int64_t i = 0; i < count; ++i)
                layer.widen_key(kernels, slots[i], task % shape.kv_heads, keys + i * layer.width);
            const std::vector<int32_t> order = ockham::alike(keys, count, layer.width);
            std::copy(order.begin(), order.end(), orders.begin() + task * count);
        }
    };
    const int64_t workers = std::min<int64_t>(std::max(threads, 1), tasks);
    std::vector<std::thread> others;
    for (int64_t i = 1; i < workers; ++i) others.emplace_back(work, i, workers);
    work(0, workers);
    for (std::thread& other : others) other.join();
    return orders;
}

}  // namespace ockham
