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

// Up to so many queries of a head read keys as fast as memory gives them; a task then takes all heads in
// turns.
constexpr int64_t most_turn_queries = 8;

// The sums of a tile's queries with one head, as they lie one behind the other.
struct Sums {
    float *peak, *total, *out;

    Sums(float* at, int64_t queries)
        : peak(at), total(at + queries), out(at + padded(2 * queries)) {}
    static int64_t floats(int64_t queries, int64_t width) {
        return padded(2 * queries) + queries * width;
    }
};

// Puts a part's sums of query `i` behind those of the parts before it.
void put(const AttentionKernels& kernels, bool first, int64_t width, int64_t i, const Sums& part,
         float* peak, float* total, float* out) {
    if (!first) {
        kernels.merge(1, width, part.peak + i, part.total + i, part.out + i * width, peak, total,
                      out);
        return;
    }
    *peak = part.peak[i];
    *total = part.total[i];
    std::copy_n(part.out + i * width, width, out);
}

// Reduces one part for several heads of a tile, which visit all keys: sums_of(head) takes the sums.
template <class F>
void reduce_in_turns(std::vector<AttentionTask>& heads, int64_t part, F sums_of) {
    const int64_t count = static_cast<int64_t>(heads.size());
    for (int64_t head = 0; head < count; ++head) {
        const Sums sums = sums_of(head);
        heads[head].begin(part, sums.peak, sums.total, sums.out);
        heads[head].find_shared();
    }
    const int64_t first = heads[0].low() / block_keys;
    const int64_t last = (heads[0].shared() + block_keys - 1) / block_keys;
    for (int64_t block = first; block < last && heads[0].low() < heads[0].shared(); ++block)
        for (int64_t head = 0; head < count; ++head) {
            const bool more = head + 1 < count;
            const bool end = !more && block + 1 == last;
            heads[head].reduce_block(block, end ? nullptr : &heads[more ? head + 1 : 0],
                                     more ? block : block + 1);
        }
    for (AttentionTask& task : heads) task.reduce_own(part);
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
    const std::vector<float> nothing(shape.sinks.empty() ? 0 : static_cast<size_t>(width));
    const auto finish = [&](const AttentionPlan::Rows& rows, int64_t head, int64_t i, float peak,
                            float total, float* out) {
        const int64_t row = rows.begin + i / repeat, query_head = head * repeat + i % repeat;
        if (!shape.sinks.empty()) {
            const float one = 1.0f;
            kernels.merge(1, width, &shape.sinks[query_head], &one, nothing.data(), &peak, &total,
                          out);
        }
        float* to = a + row * a_stride + query_head * shape.head_dim;
        kernels.finish(out, total, shape.head_dim, to);
        if (plane.v.rotated()) row_kernels(isa).hadamard(to, shape.head_dim);
        if (totals != nullptr) {
            totals[(row * shape.heads + query_head) * 2] = peak;
            totals[(row * shape.heads + query_head) * 2 + 1] = total;
        }
    };

    int64_t most_parts = 1, most_queries = 1;
    for (const AttentionPlan::Rows& rows : plan.tiles) {
        most_parts = std::max<int64_t>(
            most_parts, (plan.high[rows.end - 1] + part_keys - 1) / part_keys -
                            plan.low[rows.begin] / part_keys);
        most_queries = std::max<int64_t>(most_queries, (rows.end - rows.begin) * repeat);
    }
    const int64_t sum_floats = Sums::floats(most_queries, width);

    // All heads are one task where that leaves enough of them.
    const bool in_turns =
        shape.kv_heads > 1 && plan.chunk == 0 && visits.of_group == nullptr &&
        visits.chosen == nullptr && most_queries <= most_turn_queries &&
        tiles * most_parts >= 2 * pool.size();
    const int64_t tile_tasks = in_turns ? 1 : shape.kv_heads;
    const int64_t heads = shape.kv_heads / tile_tasks;  // of a task
    const bool split = most_parts > 1 && tiles * tile_tasks < 4 * pool.size();

    const auto tasks_of = [&](const AttentionPlan::Rows& rows, int64_t first_head, int thread) {
        std::vector<AttentionTask> tasks;
        tasks.reserve(static_cast<size_t>(heads));
        std::vector<AttentionScratch>& scratch = buffers.heads[thread];
        if (static_cast<int64_t>(scratch.size()) < heads) scratch.resize(heads);
        for (int64_t head = 0; head < heads; ++head) {
            tasks.emplace_back(isa, step, plan, shape, plane, visits, rows, first_head + head,
                               scratch[head]);
            tasks.back().pack(q, q_stride);
        }
        return tasks;
    };
    // sums_of(head), counted from the first of the tasks, takes the sums.
    const auto reduce = [&](std::vector<AttentionTask>& tasks, int64_t part, const auto& sums_of) {
        if (tasks.size() > 1) {
            reduce_in_turns(tasks, part, sums_of);
            return;
        }
        const Sums sums = sums_of(0);
        tasks[0].reduce(part, sums.peak, sums.total, sums.out);
    };

    if (!split) {
        int64_t products = 0;
        for (int64_t row = 0; row < step.rows; ++row)
            products += 2 * (plan.high[row] - plan.low[row]) * a_stride;
        const auto attend_task = [&](int64_t index, int thread) {
            // The last rows of a prompt see most: they begin first.
            const AttentionPlan::Rows& rows = plan.tiles[tiles - 1 - index / tile_tasks];
            const int64_t first_head = index % tile_tasks * heads;
            std::vector<AttentionTask> tasks = tasks_of(rows, first_head, thread);
            const AttentionTask& first = tasks[0];
            const int64_t queries = first.queries();
            AttentionScratch& scratch = buffers.threads[thread];
            float* whole = scratch.sums.take<float>(heads * sum_floats);
            const auto whole_of = [&](int64_t head) {
                return Sums(whole + head * sum_floats, queries);
            };
            if (first.last_part() - first.first_part() == 1) {
                reduce(tasks, first.first_part(), whole_of);
            } else {
                float* parts = scratch.part_sums.take<float>(heads * sum_floats);
                const auto part_of = [&](int64_t head) {
                    return Sums(parts + head * sum_floats, queries);
                };
                for (int64_t part = first.first_part(); part < first.last_part(); ++part) {
                    if (!first.visits(part)) continue;
                    reduce(tasks, part, part_of);
                    for (int64_t head = 0; head < heads; ++head) {
                        const Sums all = whole_of(head);
                        for (int64_t i = 0; i < queries; ++i)
                            if (first.sees(i, part))
                                put(kernels, first.begins(i, part), width, i, part_of(head),
                                    all.peak + i, all.total + i, all.out + i * width);
                    }
                }
            }
            for (int64_t head = 0; head < heads; ++head) {
                const Sums all = whole_of(head);
                for (int64_t i = 0; i < queries; ++i)
                    finish(rows, first_head + head, i, all.peak[i], all.total[i],
                           all.out + i * width);
            }
        };
        if (products < alone_products)
            for (int64_t i = 0; i < tiles * tile_tasks; ++i) attend_task(i, 0);
        else
            pool.parallel(tiles * tile_tasks, attend_task);
        return;
    }

    // Few rows and long contexts: every part is a task, and a second pass merges them in order.
    float* partials =
        buffers.partials.take<float>(tiles * shape.kv_heads * most_parts * sum_floats);
    const auto partial = [&](int64_t tile, int64_t head, int64_t place) {
        const AttentionPlan::Rows& rows = plan.tiles[tile];
        return Sums(partials + ((tile * shape.kv_heads + head) * most_parts + place) * sum_floats,
                    (rows.end - rows.begin) * repeat);
    };
    pool.parallel(tiles * tile_tasks * most_parts, [&](int64_t index, int thread) {
        const int64_t tile = index / most_parts / tile_tasks;
        const int64_t first_head = index / most_parts % tile_tasks * heads;
        const int64_t place = index % most_parts;
        const AttentionPlan::Rows& rows = plan.tiles[tile];
        std::vector<AttentionTask> tasks = tasks_of(rows, first_head, thread);
        const int64_t part = tasks[0].first_part() + place;
        if (part >= tasks[0].last_part() || !tasks[0].visits(part)) return;
        reduce(tasks, part, [&](int64_t head) { return partial(tile, first_head + head, place); });
    });
    pool.parallel(tiles * shape.kv_heads, [&](int64_t index, int thread) {
        const int64_t tile = index / shape.kv_heads, head = index % shape.kv_heads;
        AttentionScratch& scratch = buffers.threads[thread];
        AttentionTask task(isa, step, plan, shape, plane, visits, plan.tiles[tile], head, scratch);
        task.pack(q, q_stride);
        float* out = scratch.out.take<float>(width);
        for (int64_t i = 0; i < task.queries(); ++i) {
            float peak = 0.0f, total = 0.0f;
            for (int64_t part = task.first_part(); part < task.last_part(); ++part) {
                if (!task.sees(i, part)) continue;
                put(kernels, task.begins(i, part), width, i,
                    partial(tile, head, part - task.first_part()), &peak, &total, out);
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
        const Sums sums(scratch.part_sums.take<float>(Sums::floats(repeat, plane.width)), repeat);
        const float* visited = totals + (row * shape.heads + head * repeat) * 2;
        std::vector<double> whole(static_cast<size_t>(repeat));  // in units of the visited sum
        for (int64_t part = task.first_part(); part < task.last_part(); ++part) {
            task.reduce(part, sums.peak, sums.total, sums.out);
            for (int64_t i = 0; i < repeat; ++i)
                whole[i] += std::exp(static_cast<double>(sums.peak[i]) - visited[2 * i]) *
                            (sums.total[i] / static_cast<double>(visited[2 * i + 1]));
        }
        for (int64_t i = 0; i < repeat && !shape.sinks.empty(); ++i)
            whole[i] += std::exp(static_cast<double>(shape.sinks[head * repeat + i]) - visited[2 * i]) /
                        static_cast<double>(visited[2 * i + 1]);
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
