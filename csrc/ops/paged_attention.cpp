#include "ops/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/threads.h"
#include "ops/attention_task.h"
#include "ops/choosing.h"
#include "ops/key_groups.h"

namespace ockham {

namespace {

// Below this many products of elements, sharing the work takes longer than doing it.
constexpr int64_t alone_products = 1 << 17;

// Puts a part's sums of one query behind those of the parts before it.
void put(const AttentionKernels& kernels, bool first, int64_t width, const float* part_peak,
         const float* part_total, const float* part_out, float* peak, float* total, float* out) {
    if (!first) {
        kernels.merge(1, width, part_peak, part_total, part_out, peak, total, out);
        return;
    }
    *peak = *part_peak;
    *total = *part_total;
    std::copy(part_out, part_out + width, out);
}

}  // namespace

Cells cells_of(const StepView& step, const AttentionPlan& plan, int64_t row) {
    const GroupRowsView& rows = step.groups[plan.group];
    return {rows.table.pages + rows.table.starts[step.sequence[row]], step.page_tokens,
            rows.extras(row) == 0 ? plan.high[row] : rows.context[row],
            rows.extra == nullptr ? nullptr : rows.extra + rows.extra_starts[row]};
}

BlockList LayerVisits::list(int64_t row, int64_t head) const {
    BlockList found;
    if (chosen != nullptr && chosen->find(row, head, found)) return found;
    return of_group == nullptr ? BlockList{} : of_group->list(row, layer, head);
}

void attend(ThreadPool& pool, Isa isa, const StepView& step, const AttentionPlan& plan,
            const AttentionShape& shape, const LayerPlane& plane, const LayerVisits& visits,
            const float* q, int64_t q_stride, float* a, float* totals, AttentionBuffers& buffers) {
    const AttentionKernels& kernels = attention_kernels(isa);
    const int64_t tiles = static_cast<int64_t>(plan.tiles.size());
    const int64_t width = plane.width, repeat = shape.heads / shape.kv_heads;
    const int64_t a_stride = shape.heads * shape.head_dim;

    // Writes one query's result; `i` counts the queries of a tile.
    const auto finish = [&](const AttentionPlan::Rows& rows, int64_t head, int64_t i, float peak,
                            float total, const float* out) {
        const int64_t row = rows.begin + i / repeat, query_head = head * repeat + i % repeat;
        float* to = a + row * a_stride + query_head * shape.head_dim;
        kernels.finish(out, total, shape.head_dim, to);
        if (plane.v.rotated()) row_kernels(isa).hadamard(to, shape.head_dim);
        if (totals != nullptr) {
            totals[(row * shape.heads + query_head) * 2] = peak;
            totals[(row * shape.heads + query_head) * 2 + 1] = total;
        }
    };

    int64_t most_parts = 1;
    for (const AttentionPlan::Rows& rows : plan.tiles)
        most_parts = std::max<int64_t>(
            most_parts, (plan.high[rows.end - 1] + part_keys - 1) / part_keys -
                            plan.low[rows.begin] / part_keys);
    const bool split = most_parts > 1 && tiles * shape.kv_heads < 4 * pool.size();

    if (!split) {
        int64_t products = 0;
        for (int64_t row = 0; row < step.rows; ++row)
            products += 2 * (plan.high[row] - plan.low[row]) * a_stride;
        const auto attend_task = [&](int64_t index, int thread) {
            // The last rows of a prompt see most: they begin first.
            const AttentionPlan::Rows& rows = plan.tiles[tiles - 1 - index / shape.kv_heads];
            const int64_t head = index % shape.kv_heads;
            AttentionScratch& scratch = buffers.threads[thread];
            AttentionTask task(isa, step, plan, shape, plane, visits, rows, head, scratch);
            task.pack(q, q_stride);
            const int64_t queries = task.queries();
            float* peak = scratch.peak.take<float>(queries);
            float* total = scratch.total.take<float>(queries);
            float* out = scratch.out.take<float>(queries * width);
            if (task.last_part() - task.first_part() == 1) {
                task.reduce(task.first_part(), peak, total, out);
            } else {
                float* part_peak = scratch.part_peak.take<float>(queries);
                float* part_total = scratch.part_total.take<float>(queries);
                float* part_out = scratch.part_out.take<float>(queries * width);
                for (int64_t part = task.first_part(); part < task.last_part(); ++part) {
                    if (!task.visits(part)) continue;
                    task.reduce(part, part_peak, part_total, part_out);
                    for (int64_t i = 0; i < queries; ++i)
                        if (task.sees(i, part))
                            put(kernels, task.begins(i, part), width, part_peak + i,
                                part_total + i, part_out + i * width, peak + i, total + i,
                                out + i * width);
                }
            }
            for (int64_t i = 0; i < queries; ++i)
                finish(rows, head, i, peak[i], total[i], out + i * width);
        };
        if (products < alone_products)
            for (int64_t i = 0; i < tiles * shape.kv_heads; ++i) attend_task(i, 0);
        else
            pool.parallel(tiles * shape.kv_heads, attend_task);
        return;
    }

    // Few rows and long contexts: every part is a task, and a second pass merges them in order.
    const int64_t most_queries = tile_rows(repeat) * repeat;
    const int64_t partial_floats = padded(most_queries * (width + 2));
    float* partials =
        buffers.partials.take<float>(tiles * shape.kv_heads * most_parts * partial_floats);
    const auto partial = [&](int64_t tile, int64_t head, int64_t part) {
        return partials + ((tile * shape.kv_heads + head) * most_parts + part) * partial_floats;
    };
    pool.parallel(tiles * shape.kv_heads * most_parts, [&](int64_t index, int thread) {
        const int64_t tile = index / most_parts / shape.kv_heads;
        const int64_t head = index / most_parts % shape.kv_heads;
        AttentionScratch& scratch = buffers.threads[thread];
        AttentionTask task(isa, step, plan, shape, plane, visits, plan.tiles[tile], head, scratch);
        const int64_t place = index % most_parts, part = task.first_part() + place;
        if (part >= task.last_part() || !task.visits(part)) return;
        task.pack(q, q_stride);
        float* peak = partial(tile, head, place);
        float* total = peak + task.queries();
        task.reduce(part, peak, total, total + task.queries());
    });
    pool.parallel(tiles * shape.kv_heads, [&](int64_t index, int thread) {
        const int64_t tile = index / shape.kv_heads, head = index % shape.kv_heads;
        AttentionScratch& scratch = buffers.threads[thread];
        AttentionTask task(isa, step, plan, shape, plane, visits, plan.tiles[tile], head, scratch);
        task.pack(q, q_stride);
        const int64_t queries = task.queries();
        float* out = scratch.out.take<float>(width);
        for (int64_t i = 0; i < queries; ++i) {
            float peak = 0.0f, total = 0.0f;
            for (int64_t part = task.first_part(); part < task.last_part(); ++part) {
                if (!task.sees(i, part)) continue;
                const float* part_peak = partial(tile, head, part - task.first_part());
                const float* part_total = part_peak + queries;
                put(kernels, task.begins(i, part), width, part_peak + i, part_total + i,
                    part_total + queries + i * width, &peak, &total, out);
            }
            finish(plan.tiles[tile], head, i, peak, total, out);
        }
    });
}

void score_row(Isa isa, const StepView& step, const AttentionPlan& plan,
               const AttentionShape& shape, const LayerPlane& plane, const LayerVisits& visits,
               const float* q, int64_t q_stride, const float* totals, int64_t row, bool summed,
               float* scores, AttentionScratch& scratch) {
    const AttentionKernels& kernels = attention_kernels(isa);
    const int64_t low = plan.low[row], high = plan.high[row];
    const int64_t repeat = shape.heads / shape.kv_heads;
    const int64_t keys = ((high + block_keys - 1) / block_keys - low / block_keys) * block_keys;
    const int64_t sums = summed ? 1 : shape.kv_heads;
    std::vector<float> blocks(static_cast<size_t>(sums * keys));
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
        float* of_head = blocks.data() + (summed ? 0 : head * keys);
        AttentionTask task(isa, step, plan, shape, plane, visits, {row, row + 1, true}, head, scratch);
        task.pack(q, q_stride);
        for (int64_t part = task.first_part(); part < task.last_part(); ++part) {
            const int64_t part_low = std::max(low, part * part_keys);
            const int64_t part_high = std::min(high, (part + 1) * part_keys);
            AttentionTile tile = task.whole(nullptr, nullptr, nullptr);
            tile.first_group = part * part_groups;
            tile.groups = task.groups();
            task.each_run(part_low, part_high, [&](int64_t first, int64_t last, int64_t way) {
                find_groups(plane, head, cells_of(step, plan, row), tile.first_group, first,
                            last, scratch.gathered, task.groups());
                for (int64_t i = 0; i < repeat; ++i) {
                    const float* final = totals + (row * shape.heads + head * repeat + i) * 2;
                    float peak = final[0], total = final[1];
                    AttentionTile one = tile;
                    one.queries = 1;
                    task.take_queries(one, i);
                    one = task.in_way(one, way);
                    one.low += i;
                    one.high += i;
                    one.peak = &peak;
                    one.total = &total;
                    for (int64_t b = first / block_keys; b * block_keys < last; ++b)
                        kernels.probabilities(one, b,
                                              of_head + (b - low / block_keys) * block_keys);
                }
            });
        }
    }
    for (int64_t sum = 0; sum < sums; ++sum)
        std::copy_n(blocks.data() + sum * keys + low % block_keys, high - low,
                    scores + sum * (high - low));
}

void recall_row(Isa isa, const StepView& step, const AttentionPlan& plan,
                const AttentionShape& shape, const LayerPlane& plane, const float* q,
                int64_t q_stride, const float* totals, int64_t row, float* recall,
                AttentionScratch& scratch) {
    const int64_t repeat = shape.heads / shape.kv_heads;
    const AttentionPlan::Rows one{row, row + 1, step.groups[plan.group].extras(row) > 0};
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
        recall[head] = 1.0f;
        if (plan.high[row] <= plan.low[row]) continue;
        AttentionTask task(isa, step, plan, shape, plane, {}, one, head, scratch);
        task.pack(q, q_stride);
        float* peak = scratch.part_peak.take<float>(repeat);
        float* total = scratch.part_total.take<float>(repeat);
        float* out = scratch.part_out.take<float>(repeat * plane.width);
        const float* visited = totals + (row * shape.heads + head * repeat) * 2;
        std::vector<double> whole(static_cast<size_t>(repeat));  // in units of the visited sum
        for (int64_t part = task.first_part(); part < task.last_part(); ++part) {
            task.reduce(part, peak, total, out);
            for (int64_t i = 0; i < repeat; ++i)
                whole[i] += std::exp(static_cast<double>(peak[i]) - visited[2 * i]) *
                            (total[i] / static_cast<double>(visited[2 * i + 1]));
        }
        double sum = 0.0;
        for (int64_t i = 0; i < repeat; ++i) sum += std::min(1.0, 1.0 / whole[i]);
        recall[head] = static_cast<float>(sum / static_cast<double>(repeat));
    }
}

void total_rows(ThreadPool& pool, Isa isa, const StepView& step, const AttentionPlan& plan,
                const AttentionShape& shape, const LayerPlane& plane, const LayerVisits& visits,
                const float* q, int64_t q_stride, const float* peaks, const int32_t* rows,
                int64_t count, int64_t keys, double* totals, AttentionBuffers& buffers) {
    // Adding and taking away 3 * 2^19 rounds to multiples of 2^-32. The sums of those are exact, so
    // that it does not matter which task comes first.
    constexpr double rounder = 3.0 * (1 << 19);
    constexpr int64_t task_rows = 16;
    std::mutex adding;
    pool.parallel((count + task_rows - 1) / task_rows, [&](int64_t task, int thread) {
        std::vector<double> sums(static_cast<size_t>(shape.kv_heads * keys));
        std::vector<float> scores(static_cast<size_t>(shape.kv_heads * keys));
        const int64_t last = std::min(count, (task + 1) * task_rows);
        for (int64_t i = task * task_rows; i < last; ++i) {
            const int64_t row = rows[i], low = plan.low[row], seen = plan.high[row] - low;
            if (seen == 0) continue;  // not active
            score_row(isa, step, plan, shape, plane, visits, q, q_stride, peaks, row, false,
                      scores.data(), buffers.threads[thread]);
            for (int64_t head = 0; head < shape.kv_heads; ++head)
                for (int64_t key = 0; key < seen; ++key)
                    sums[head * keys + low + key] +=
                        (static_cast<double>(scores[head * seen + key]) + rounder) - rounder;
        }
        const std::lock_guard<std::mutex> guard(adding);
        for (size_t i = 0; i < sums.size(); ++i) totals[i] += sums[i];
    });
}

}  // namespace ockham
