#include "state/side.h"

#include <cstring>

namespace ockham {

namespace {

int64_t element_bytes(Element element) {
    return element == Element::fp32 ? 4 : element == Element::bf16 ? 2 : 1;
}

// Calls f with a zero of the type that holds a unit's bits.
template <class F>
void with_unit(const Side& side, F f) {
    if (side.unit_bytes == 4)
        f(uint32_t{});
    else if (side.unit_bytes == 2)
        f(uint16_t{});
    else
        f(uint8_t{});
}

float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Of int4: in which unit of a token's row the code of an element stands, and whether in its high half.
struct Nibble {
    int64_t unit;
    bool high;
};

Nibble nibble(bool values, int64_t element) {
    if (values) return {element / 32 * 16 + element % 16, element / 16 % 2 == 1};
    return {element / 8 * 4 + element % 4, element / 4 % 2 == 1};
}

}  // namespace

Side::Side(Element element, bool values, int64_t head_dim, int64_t page_tokens)
    : element(element), values(values), head_dim(head_dim), units(padded(head_dim)),
      unit_bytes(element_bytes(element)) {
    if (element == Element::int4) {
        together = 4;
        units = (values ? (head_dim + 31) / 32 * 32 : units) / 2;
    }
    group_bytes = scale_at(coded() ? group_keys : 0);
    page_bytes = padded(page_tokens) / group_keys * group_bytes;
}

void Side::move(const uint8_t* from, int64_t from_lane, uint8_t* to, int64_t to_lane) const {
    with_unit(*this, [&](auto zero) {
        using T = decltype(zero);
        const T* source = reinterpret_cast<const T*>(from);
        T* target = reinterpret_cast<T*>(to);
        const Side own = *this;  // which no store may change
        for (int64_t unit = 0; unit < own.units; ++unit)
            target[own.place(to_lane, unit)] = source[own.place(from_lane, unit)];
    });
    if (coded()) std::memcpy(to + scale_at(to_lane), from + scale_at(from_lane), sizeof(float));
}

int64_t Side::row_bytes() const {
    if (!coded()) return head_dim * unit_bytes;
    return (element == Element::int4 ? head_dim / 2 : head_dim) + static_cast<int64_t>(sizeof(float));
}

void Side::read(const uint8_t* group, int64_t lane, uint8_t* row) const {
    if (element == Element::int4) {
        int8_t codes[most_coded_dim];
        const uint32_t scale = read_codes(group, lane, codes);
        for (int64_t i = 0; i < head_dim / 2; ++i)
            row[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
        std::memcpy(row + head_dim / 2, &scale, sizeof scale);
        return;
    }
    with_unit(*this, [&](auto zero) {
        using T = decltype(zero);
        const T* from = reinterpret_cast<const T*>(group);
        T* to = reinterpret_cast<T*>(row);
        const Side own = *this;
        for (int64_t e = 0; e < own.head_dim; ++e) to[e] = from[own.place(lane, e)];
    });
    if (coded()) std::memcpy(row + head_dim, group + scale_at(lane), sizeof(float));
}

void Side::write(uint8_t* group, int64_t lane, const uint8_t* row) const {
    if (element == Element::int4) {
        int8_t codes[most_coded_dim];
        for (int64_t i = 0; i < head_dim / 2; ++i) {
            codes[2 * i] = row[i] & 15;
            codes[2 * i + 1] = static_cast<int8_t>(row[i] >> 4);
        }
        uint32_t scale;
        std::memcpy(&scale, row + head_dim / 2, sizeof scale);
        write_codes(group, lane, codes, scale);
        return;
    }
    with_unit(*this, [&](auto zero) {
        using T = decltype(zero);
        const T* from = reinterpret_cast<const T*>(row);
        T* to = reinterpret_cast<T*>(group);
        const Side own = *this;
        for (int64_t e = 0; e < own.head_dim; ++e) to[own.place(lane, e)] = from[e];
    });
    if (coded()) std::memcpy(group + scale_at(lane), row + head_dim, sizeof(float));
}

uint32_t Side::read_codes(const uint8_t* group, int64_t lane, int8_t* codes) const {
    for (int64_t e = 0; e < head_dim; ++e) {
        if (element == Element::int8) {
            codes[e] = static_cast<int8_t>(group[place(lane, e)]);
            continue;
        }
        const Nibble at = nibble(values, e);
        const uint8_t both = group[place(lane, at.unit)];
        codes[e] = static_cast<int8_t>(at.high ? both >> 4 : both & 15);
    }
    uint32_t scale;
    std::memcpy(&scale, group + scale_at(lane), sizeof scale);
    return scale;
}

void Side::write_codes(uint8_t* group, int64_t lane, const int8_t* codes, uint32_t scale) const {
    const Side own = *this;
    if (element == Element::int8) {
        for (int64_t e = 0; e < own.head_dim; ++e)
            group[own.place(lane, e)] = static_cast<uint8_t>(codes[e]);
    } else {
        // The elements in the low and in the high half of each unit.
        const int64_t apart = own.values ? 16 : 4;
        for (int64_t unit = 0; unit < own.units; ++unit) {
            const int64_t low = unit / apart * 2 * apart + unit % apart, high = low + apart;
            const int first = low < own.head_dim ? codes[low] : 0;
            const int second = high < own.head_dim ? codes[high] : 0;
            group[own.place(lane, unit)] = static_cast<uint8_t>(first | second << 4);
        }
    }
    std::memcpy(group + scale_at(lane), &scale, sizeof scale);
}

void Side::encode(const RowKernels& kernels, const float* x, const float* mirror, uint8_t* group,
                  int64_t lane) const {
    int8_t codes[most_coded_dim];
    if (element == Element::int8) {
        const float scale = kernels.to_int8(x, head_dim, codes);
        uint32_t bits;
        std::memcpy(&bits, &scale, sizeof bits);
        write_codes(group, lane, codes, bits);
        return;
    }
    float rotated[most_coded_dim];
    std::memcpy(rotated, x, static_cast<size_t>(head_dim) * sizeof(float));
    if (mirror != nullptr) reflect(mirror, head_dim, rotated);
    kernels.hadamard(rotated, head_dim);
    const uint32_t grid = kernels.to_int4(rotated, head_dim, codes);
    write_codes(group, lane, codes, grid);
}

void Side::decode(const RowKernels& kernels, const uint8_t* group, int64_t lane,
                  const float* mirror, float* x) const {
    int8_t codes[most_coded_dim];
    const uint32_t bits = read_codes(group, lane, codes);
    if (element == Element::int8) {
        const float scale = float_of(bits);
        for (int64_t e = 0; e < head_dim; ++e) x[e] = scale * static_cast<float>(codes[e]);
        return;
    }
    const float scale = float_of(bits & 0xFFFF0000u), zero = float_of(bits << 16);
    for (int64_t e = 0; e < head_dim; ++e) x[e] = zero + scale * static_cast<float>(codes[e]);
    kernels.hadamard(x, head_dim);
    if (mirror != nullptr) reflect(mirror, head_dim, x);
}

void reflect(const float* mirror, int64_t length, float* x) {
    constexpr int64_t lanes = 16;
    float sums[lanes] = {};
    int64_t i = 0;
    for (; i + lanes <= length; i += lanes)
        for (int64_t lane = 0; lane < lanes; ++lane)
            sums[lane] = sums[lane] + x[i + lane] * mirror[i + lane];
    for (int64_t lane = 0; i + lane < length; ++lane)
        sums[lane] = sums[lane] + x[i + lane] * mirror[i + lane];
    for (int64_t half = lanes / 2; half > 0; half /= 2)
        for (int64_t lane = 0; lane < half; ++lane) sums[lane] = sums[lane] + sums[lane + half];
    const float along = sums[0];
    for (i = 0; i < length; ++i) x[i] = x[i] - along * mirror[i];
}

}  // namespace ockham
