#include "pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "linear.h"
#include "threads.h"

namespace ockham {

namespace {

template <class Unit>
void panel_of(const Unit* rows, Unit* panel, int64_t units) {
    // Blocks of a cache line a row: each line is read once.
    constexpr int64_t block = std::max<int64_t>(1, 64 / sizeof(Unit));
    for (int64_t begin = 0; begin < units; begin += block) {
        const int64_t end = std::min(units, begin + block);
        for (int64_t unit = begin; unit < end; ++unit)
            for (int64_t lane = 0; lane < panel_outputs; ++lane)
                panel[unit * panel_outputs + lane] = rows[lane * units + unit];
    }
}

template <class Unit>
void all_panels(ThreadPool& pool, uint8_t* weight, int64_t outputs, int64_t units) {
    const int64_t panel_units = units * panel_outputs;
    std::vector<std::vector<Unit>> copies(pool.size());
    for (auto& copy : copies) copy.resize(panel_units);
    pool.parallel(outputs / panel_outputs, [&](int64_t panel, int thread) {
        Unit* at = reinterpret_cast<Unit*>(weight) + panel * panel_units;
        std::memcpy(copies[thread].data(), at, sizeof(Unit) * panel_units);
        panel_of(copies[thread].data(), at, units);
    });
}

}  // namespace

void to_panels(ThreadPool& pool, uint8_t* weight, int64_t outputs, int64_t units, int unit_bytes) {
    switch (unit_bytes) {
        case 1:
            return all_panels<uint8_t>(pool, weight, outputs, units);
        case 2:
            return all_panels<uint16_t>(pool, weight, outputs, units);
        case 4:
            return all_panels<uint32_t>(pool, weight, outputs, units);
        case 8:
            return all_panels<uint64_t>(pool, weight, outputs, units);
    }
}

void pack_int8(ThreadPool& pool, Isa isa, const float* rows, int64_t panels, int64_t inputs,
               uint8_t* weight, float* scale) {
    const auto pack = pack_kernels(isa).int8;
    const int64_t units = (inputs + 3) / 4, panel_units = units * panel_outputs;
    std::vector<std::vector<uint32_t>> codes(pool.size(), std::vector<uint32_t>(panel_units));
    pool.parallel(panels, [&](int64_t panel, int thread) {
        uint32_t* own = codes[thread].data();
        pack(rows + panel * panel_outputs * inputs, inputs, reinterpret_cast<uint8_t*>(own),
             scale + panel * panel_outputs);
        panel_of(own, reinterpret_cast<uint32_t*>(weight) + panel * panel_units, units);
    });
}

void pack_int4(ThreadPool& pool, Isa isa, const float* rows, int64_t panels, int64_t inputs,
               int64_t group, uint8_t* weight, uint16_t* scale) {
    const auto pack = pack_kernels(isa).int4;
    const int64_t units = inputs / 8, panel_units = units * panel_outputs;
    std::vector<std::vector<uint32_t>> codes(pool.size(), std::vector<uint32_t>(panel_units));
    pool.parallel(panels, [&](int64_t panel, int thread) {
        uint32_t* own = codes[thread].data();
        pack(rows + panel * panel_outputs * inputs, inputs, group, reinterpret_cast<uint8_t*>(own),
             scale + panel * panel_outputs * (inputs / group));
        panel_of(own, reinterpret_cast<uint32_t*>(weight) + panel * panel_units, units);
    });
}

}  // namespace ockham
