// Which rows attend together, and what each of them sees.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/paged_attention.h"

namespace ockham {

namespace {

constexpr int64_t most_tile_queries = 96;

}  // namespace

int64_t tile_rows(int64_t repeat) { return std::max<int64_t>(1, most_tile_queries / repeat); }

AttentionPlan plan_attention(const StepView& step, const RowSet& active, int64_t group,
                             int64_t window, bool causal, int64_t chunk, int64_t pages,
                             int64_t repeat) {
    AttentionPlan plan;
    plan.chunk = chunk;
    plan.group = group;
    plan.window = window;
    plan.causal = causal;
    plan.active = active.which;
    plan.low.resize(step.rows);
    plan.high.resize(step.rows);
    const GroupRowsView& rows = step.groups[group];
    const TableView& table = rows.table;
    const int32_t* query_blocks = rows.visits.query_blocks;
    const int64_t most_rows = tile_rows(repeat);
    std::vector<int32_t> ends;  // of each sequence's context, where rows see what follows them
    if (!causal) {
        if (rows.extra != nullptr)
            throw std::invalid_argument("rows that are not causal have no extra cells.");
        ends.resize(step.sequences);
        for (int64_t row = 0; row < step.rows; ++row) {
            int32_t& end = ends[step.sequence[row]];
            end = std::max(end, rows.context[row]);
        }
    }
    // Of one sequence, the entries [checked_begin, checked_end) of its table are known to be good.
    int64_t checked_sequence = -1, checked_begin = 0, checked_end = 0;
    for (int64_t i = 0; i < active.count; ++i) {
        const int64_t row = active.at(i);
        const int64_t sequence = step.sequence[row];
        int64_t seen = rows.seen(row), context = rows.context[row];
        const int64_t low = window > 0 ? std::max<int64_t>(0, seen - window) : 0;
        if (!causal) {
            const int64_t end = ends[sequence];
            seen = context = window > 0 ? std::min<int64_t>(end, context - 1 + window) : end;
        }
        const int32_t* entries = table.pages + table.starts[sequence];
        const int64_t length = table.starts[sequence + 1] - table.starts[sequence];
        const auto check = [&](int64_t cell) {
            const int64_t entry = cell / step.page_tokens;
            if (cell < 0 || entry >= length || entries[entry] < 0 || entries[entry] >= pages)
                throw std::invalid_argument("row " + std::to_string(row) + " sees cell " +
                                            std::to_string(cell) + ", which has no page.");
        };
        if (seen < 1)
            throw std::invalid_argument("row " + std::to_string(row) + " sees no key.");
        if (low < context) {
            const int64_t begin = low / step.page_tokens;
            const int64_t end = (context - 1) / step.page_tokens + 1;
            if (sequence != checked_sequence || begin < checked_begin || begin > checked_end) {
                checked_sequence = sequence;
                checked_begin = checked_end = begin;
            }
            for (; checked_end < end; ++checked_end) check(checked_end * step.page_tokens);
        }
        for (int64_t e = std::max<int64_t>(0, low - context); e < rows.extras(row); ++e)
            check(rows.extra[rows.extra_starts[row] + e]);
        plan.low[row] = static_cast<int32_t>(low);
        plan.high[row] = static_cast<int32_t>(seen);

        const bool tree = rows.extras(row) > 0;
        if (!plan.tiles.empty() && plan.tiles.back().end == row) {
            AttentionPlan::Rows& last = plan.tiles.back();
            const bool ascends =
                plan.low[row - 1] <= plan.low[row] && plan.high[row - 1] <= plan.high[row];
            const int64_t before = rows.seen(row - 1);
            const ChoicesView::Choice* choices[2] = {rows.choices.find(row, seen),
                                                     rows.choices.find(row - 1, before)};
            const bool one_chunk = chunk == 0 || (before - 1) / chunk == (seen - 1) / chunk;
            bool together = one_chunk && (query_blocks == nullptr ||
                                          query_blocks[row - 1] == query_blocks[row]);
            for (const ChoicesView::Choice* choice : choices)
                if (choice != nullptr)  // by itself, or with the rows of its block
                    together = together && choice->chooser == nullptr &&
                               (seen - 1) / block_keys == (before - 1) / block_keys;
            if (step.sequence[row - 1] == sequence && last.tree == tree && ascends && together &&
                row - last.begin < most_rows) {
                last.end = row + 1;
                continue;
            }
        }
        plan.tiles.push_back({row, row + 1, tree});
    }
    return plan;
}

}  // namespace ockham
