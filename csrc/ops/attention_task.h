// One tile of attention over the paged planes with one key-value head; paged_attention.cpp gives them
// to threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/layer_kernels.h"
#include "ops/key_groups.h"
#include "ops/paged_attention.h"

namespace ockham {

// Its queries packed, and the sums of its parts.
class AttentionTask {
   public:
    AttentionTask(Isa isa, const StepView& step, const AttentionPlan& plan,
         const AttentionShape& shape, const LayerPlane& plane, const LayerVisits& visits,
         AttentionPlan::Rows rows, int64_t head, AttentionScratch& scratch)
        : kernels_(attention_kernels(isa)),
          rows_kernels_(row_kernels(isa)),
          step_(step),
          plan_(plan),
          shape_(shape),
          plane_(plane),
          visited_(visits.list(rows.begin, head)),
          rows_(rows),
          head_(head),
          repeat_(shape.heads / shape.kv_heads),
          queries_((rows.end - rows.begin) * repeat_),
          chunk_(plan.chunk == 0 ? 0 : (plan.high[rows.begin] - 1) / plan.chunk),
          scratch_(scratch) {}

    void pack(const float* q, int64_t q_stride) {
        const int64_t width = plane_.width, head_dim = shape_.head_dim;
        const int64_t all = ways() * queries_;
        float* packed = scratch_.q.take<float>(all * width);
        int32_t* low = scratch_.low.take<int32_t>(queries_);
        int32_t* high = scratch_.high.take<int32_t>(queries_);
        for (int64_t row = rows_.begin; row < rows_.end; ++row) {
            const float* from = q + row * q_stride + head_ * repeat_ * head_dim;
            for (int64_t i = 0; i < repeat_; ++i, from += head_dim, packed += width) {
                if (plan_.chunk > 0)
                    turn(from, row, packed);
                else
                    write(from, shape_.scale, packed);
                *low++ = plan_.low[row];
                *high++ = plan_.high[row];
            }
        }
        if (plane_.k.element == Element::bf16)
            rows_kernels_.to_bf16(scratch_.q.get<float>(), all * width,
                                  scratch_.rounded_q.take<uint16_t>(all * width));
        if (plane_.k.coded()) code_queries();
    }

    // The parts that any of the rows sees.
    int64_t first_part() const { return least_low() / part_keys; }
    int64_t last_part() const { return (most_high() + part_keys - 1) / part_keys; }
    // Whether any of the rows visits keys of such a part.
    bool visits(int64_t part) const {
        return visits(std::max(part * part_keys, least_low()),
                      std::min((part + 1) * part_keys, most_high()));
    }

    // Reduces one part alone into peak, total and out of all queries; those that see none of its
    // keys are left at -infinity, 0 and 0.
    void reduce(int64_t part, float* peak, float* total, float* out) {
        begin(part, peak, total, out);
        if (low_ < shared_) visit(tile_, shared_row(), low_, shared_);
        reduce_own(part);
    }

    // The same in steps, for who takes the heads in turns: begin(); if all keys are visited,
    // find_shared() and reduce_block() of the blocks of [low(), shared()), in order; reduce_own().
    void begin(int64_t part, float* peak, float* total, float* out) {
        std::fill(peak, peak + queries_, -__builtin_inff());
        std::fill(total, total + queries_, 0.0f);
        std::fill(out, out + queries_ * plane_.width, 0.0f);
        const int64_t start = part * part_keys, end = start + part_keys;
        tile_ = whole(peak, total, out);
        tile_.first_group = start / group_keys;
        tile_.groups = groups_;
        low_ = std::max(start, least_low());
        shared_ = std::min(end, most_high());
        // Without extra cells all rows of a sequence see the same cells at the same keys. The rows of
        // a tree share whole blocks of context; what comes after them is each row's own.
        if (!rows_.tree) return;
        const int32_t* context = step_.groups[plan_.group].context;
        shared_ = context[rows_.begin];
        for (int64_t row = rows_.begin; row < rows_.end; ++row)
            shared_ = std::min<int64_t>(shared_, context[row]);
        shared_ = std::clamp(shared_ / block_keys * block_keys, low_, end);
    }
    // The keys [low(), shared()) of the part stand in the same cells for all rows that see them.
    int64_t low() const { return low_; }
    int64_t shared() const { return shared_; }
    void find_shared() {
        find_groups(plane_, head_, cells_of(step_, plan_, shared_row()), tile_.first_group, low_,
                    shared_, scratch_.gathered, groups_);
    }
    // `next`, if not null, is whose block `next_block` is read after this one.
    void reduce_block(int64_t block, const AttentionTask* next, int64_t next_block) {
        tile_.next_start = next_block * block_keys;
        tile_.next = next == nullptr
                         ? nullptr
                         : next->groups_ + (tile_.next_start / group_keys - tile_.first_group);
        kernels_.attend(tile_, block, block + 1);
        tile_.next = nullptr;
    }
    // What comes after the shared keys of a part.
    void reduce_own(int64_t part) {
        if (!rows_.tree) return;
        for (int64_t row = rows_.begin; row < rows_.end; ++row) {
            const int64_t row_low = std::max<int64_t>(plan_.low[row], shared_);
            const int64_t row_high = std::min<int64_t>(plan_.high[row], (part + 1) * part_keys);
            if (row_low >= row_high) continue;
            visit(of_row(tile_, row), row, row_low, row_high);
        }
    }

    bool visits_all() const { return visited_.every(); }

    // The tile of one row's queries.
    AttentionTile of_row(const AttentionTile& tile, int64_t row) const {
        const int64_t first = (row - rows_.begin) * repeat_;
        AttentionTile one = tile;
        one.queries = repeat_;
        take_queries(one, first);
        one.low += first;
        one.high += first;
        one.peak += first;
        one.total += first;
        one.out += first * plane_.width;
        return one;
    }

    AttentionTile whole(float* peak, float* total, float* out) {
        AttentionTile tile{};
        tile.queries = queries_;
        tile.head_dim = shape_.head_dim;
        tile.width = plane_.width;
        tile.keys = plane_.k.element;
        tile.values = plane_.v.element;
        tile.key_bytes = plane_.k.group_bytes;
        tile.value_bytes = plane_.v.group_bytes;
        tile.softcap = shape_.softcap;
        take_queries(tile, 0);
        tile.low = scratch_.low.get<int32_t>();
        tile.high = scratch_.high.get<int32_t>();
        tile.peak = peak;
        tile.total = total;
        tile.out = out;
        return tile;
    }

    // Lets a tile begin with the packed query `first`.
    void take_queries(AttentionTile& tile, int64_t first) const {
        Buffer& packed = plane_.k.element == Element::fp32 ? scratch_.q : scratch_.rounded_q;
        tile.q = packed.get<uint8_t>() + first * plane_.width * query_bytes();
        if (!plane_.k.coded()) return;
        tile.q_scales = scratch_.q_scales.get<float>() + first;
        tile.q_sums = scratch_.q_sums.get<int32_t>() + first;
    }

    // Whether query `i` visits keys of a part, and whether those are its first.
    bool sees(int64_t i, int64_t part) const {
        return visits(std::max(low(i), part * part_keys),
                      std::min(high(i), (part + 1) * part_keys));
    }
    bool begins(int64_t i, int64_t part) const {
        if (visited_.every()) return low(i) / part_keys == part;
        return *visited_.from(low(i) / block_keys) * block_keys / part_keys == part;
    }

    // Calls f(first, last, way) for each run of visited keys among [low, high), keys of one part, for
    // which queries are rotated in one way.
    template <class F>
    void each_run(int64_t low, int64_t high, F f) const {
        each_visited(low, high, [&](int64_t first, int64_t last) {
            for (int64_t way = chunk_way(first); way > 0; --way) {
                const int64_t end = std::min(last, (chunk_ + 1 - way) * plan_.chunk);
                if (first < end) f(first, end, way);
                first = std::max(first, end);
            }
            if (first < last) f(first, last, int64_t{0});
        });
    }

    // The tile with its queries rotated in another way than for keys of their own chunk.
    AttentionTile in_way(const AttentionTile& tile, int64_t way) const {
        if (way == 0) return tile;
        AttentionTile found = tile;
        found.q = static_cast<const uint8_t*>(tile.q) + way * queries_ * plane_.width * query_bytes();
        if (!plane_.k.coded()) return found;
        found.q_scales += way * queries_;
        found.q_sums += way * queries_;
        return found;
    }

    // Whose table finds the shared keys.
    int64_t shared_row() const { return rows_.tree ? rows_.begin : rows_.end - 1; }

    int64_t queries() const { return queries_; }
    int64_t repeat() const { return repeat_; }
    KeyGroup* groups() { return groups_; }

   private:
    // Of a packed query's element, as AttentionTile says.
    int64_t query_bytes() const {
        return plane_.k.element == Element::fp32 ? 4 : plane_.k.element == Element::int4 ? 1 : 2;
    }
    // In how many ways the queries are rotated: of their own chunk, the one before, and all before.
    int64_t ways() const { return 1 + std::min<int64_t>(2, chunk_); }
    // In which of them for the key.
    int64_t chunk_way(int64_t key) const {
        return plan_.chunk == 0 ? 0 : std::min<int64_t>(2, chunk_ - key / plan_.chunk);
    }

    void write(const float* from, float scale, float* packed) const {
        for (int64_t e = 0; e < shape_.head_dim; ++e) packed[e] = from[e] * scale;
        for (int64_t e = shape_.head_dim; e < plane_.width; ++e) packed[e] = 0.0f;
    }
    // Packs a row's query in all ways.
    void turn(const float* from, int64_t row, float* packed) const {
        const float scale = shape_.scale * plan_.turns.scales[row];
        write(from, scale, packed);
        for (int64_t way = 1; way < ways(); ++way) {
            float* turned = packed + way * queries_ * plane_.width;
            const float* cosines = plan_.turns.cosines(row, way - 1);
            const int64_t half = plan_.turns.half;
            std::copy_n(from, shape_.head_dim, turned);
            rows_kernels_.rotate(turned, cosines, cosines + half, half);
            write(turned, scale, turned);
        }
    }

    // Calls f(first, last) for each run of visited keys among [low, high), keys of one part.
    template <class F>
    void each_visited(int64_t low, int64_t high, F f) const {
        if (visited_.every()) {
            f(low, high);
            return;
        }
        for (const int32_t* block = visited_.from(low / block_keys);
             block != visited_.end() && *block * block_keys < high;) {
            const int64_t first = *block;
            int64_t last = first;
            do ++last, ++block;
            while (block != visited_.end() && *block == last && last * block_keys < high);
            f(std::max(low, first * block_keys), std::min(high, last * block_keys));
        }
    }

    // Makes the packed queries codes, rotated as the keys are.
    void code_queries() {
        if (plane_.k.element == Element::int4)
            code_queries<int8_t>(rows_kernels_.to_int8);
        else
            code_queries<int16_t>(rows_kernels_.to_int16);
    }
    template <class T>
    void code_queries(float (*to_codes)(const float*, int64_t, T*)) {
        const int64_t width = plane_.width, all = ways() * queries_;
        float* q = scratch_.q.get<float>();
        T* codes = scratch_.rounded_q.take<T>(all * width);
        float* scales = scratch_.q_scales.take<float>(all);
        int32_t* sums = scratch_.q_sums.take<int32_t>(all);
        const float* mirror = plane_.mirror(head_);
        for (int64_t i = 0; i < all; ++i, q += width, codes += width) {
            if (mirror != nullptr) reflect(mirror, shape_.head_dim, q);
            if (plane_.k.rotated()) rows_kernels_.hadamard(q, shape_.head_dim);
            scales[i] = to_codes(q, width, codes);
            sums[i] = 0;
            for (int64_t e = 0; e < width; ++e) sums[i] += codes[e];
        }
    }

    int64_t low(int64_t i) const { return scratch_.low.get<int32_t>()[i]; }
    int64_t high(int64_t i) const { return scratch_.high.get<int32_t>()[i]; }
    int64_t least_low() const { return plan_.low[rows_.begin]; }  // both ascend
    int64_t most_high() const { return plan_.high[rows_.end - 1]; }

    // Whether any of the keys [low, high) is visited.
    bool visits(int64_t low, int64_t high) const {
        if (visited_.every()) return low < high;
        const int32_t* block = visited_.from(low / block_keys);
        return low < high && block != visited_.end() && *block * block_keys < high;
    }

    // Adds the visited keys among [low, high), which stand where `row` finds them.
    void visit(const AttentionTile& tile, int64_t row, int64_t low, int64_t high) {
        const Cells cells = cells_of(step_, plan_, row);
        each_run(low, high, [&](int64_t first, int64_t last, int64_t way) {
            find_groups(plane_, head_, cells, tile.first_group, first, last, scratch_.gathered,
                        groups_);
            if (!plane_.latent) {
                kernels_.attend(in_way(tile, way), first / block_keys,
                                (last + block_keys - 1) / block_keys);
                return;
            }
            for (int64_t block = first / block_keys; block * block_keys < last; ++block) {
                make_values(plane_, std::max(first, block * block_keys),
                            std::min(last, (block + 1) * block_keys), tile.first_group,
                            scratch_.values, groups_);
                kernels_.attend(in_way(tile, way), block, block + 1);
            }
        });
    }

    const AttentionKernels& kernels_;
    const RowKernels& rows_kernels_;
    const StepView& step_;
    const AttentionPlan& plan_;
    const AttentionShape& shape_;
    const LayerPlane& plane_;
    const BlockList visited_;  // by all of the rows
    const AttentionPlan::Rows rows_;
    const int64_t head_;
    const int64_t repeat_;
    const int64_t queries_;
    const int64_t chunk_;  // of dual chunk attention, that all rows are in
    AttentionScratch& scratch_;
    AttentionTile tile_{};              // of the part that is reduced
    int64_t low_ = 0, shared_ = 0;      // likewise
    KeyGroup groups_[part_groups];
};

}  // namespace ockham
