#include "ops/chunks.h"

#include <algorithm>
#include <stdexcept>

#include "kernels/rows.h"
#include "ops/checks.h"
#include "program.h"

namespace ockham::ops {

Chunks::Chunks(const Run& run, int64_t layer, int64_t cells, int64_t ends)
    : layer_(layer),
      cells_group_(cells),
      tokens_(run.step.page_tokens),
      cells_(run.planes().layer(layer, cells)),
      ends_(run.planes().layer(layer, ends)) {
    const StepView& step = run.step;
    const TableView& of_cells = step.groups[static_cast<size_t>(cells)].table;
    const TableView& of_ends = step.groups[static_cast<size_t>(ends)].table;
    int32_t latest = -1;
    for (int64_t i = 0; i < run.active.count; ++i) {
        const PlacedRow at = placed(run, i);
        const int64_t cell = at.cell(at.place);
        const int32_t sequence = step.sequence[run.active.at(i)];
        if (sequence != latest) {
            const int32_t* c = of_cells.starts + sequence;
            const int32_t* e = of_ends.starts + sequence;
            sequences_.push_back({i, 0, 0, cell, of_cells.pages + c[0], of_ends.pages + e[0],
                                  c[1] - c[0], e[1] - e[0]});
            latest = sequence;
        }
        SequenceRows& own = sequences_.back();
        if (cell != own.cell + own.count) refuse("has rows that leave tokens out.");
        ++own.count;
        if (cell == at.place) own.ordered = own.count;
    }
    rows_.reserve(static_cast<size_t>(run.active.count));
    for (const SequenceRows& own : sequences_) {
        check(own);
        for (int64_t n = 0; n < own.count; ++n) {
            rows_.push_back(placed(run, own.first + n));
            rows_.back().own = &own;
            check_branch(rows_.back());
        }
    }
}

void Chunks::refuse(const std::string& why) const {
    throw std::invalid_argument(at("the recurrence", layer_) + " " + why);
}

PlacedRow Chunks::placed(const Run& run, int64_t i) const {
    const GroupRowsView& rows = run.step.groups[static_cast<size_t>(cells_group_)];
    const int64_t row = run.active.at(i);
    if (rows.seen(row) < 1) refuse("has a row that sees not even its own cell.");
    const int32_t* extra = rows.extra == nullptr ? nullptr : rows.extra + rows.extra_starts[row];
    return {nullptr, rows.seen(row) - 1, rows.context[row], extra};
}

void Chunks::check(const SequenceRows& own) const {
    const int64_t start = own.cell / tokens_;
    if (own.cell % tokens_ != 0) check_page(own.cell_pages, own.cell_page_count, start, cells_.pages);
    if (start > 0) check_page(own.end_pages, own.end_page_count, start - 1, ends_.pages);
}

// What a row goes on from stands in the step's first chunk, or is the latest state that the rows in
// order leave.
void Chunks::check_branch(const PlacedRow& at) const {
    const SequenceRows& own = *at.own;
    const int64_t cell = at.cell(at.place), start = at.place / tokens_ * tokens_;
    if (at.context < own.cell) refuse("has a row that goes on from before the step's first.");
    for (int64_t before = at.context; before < at.place; ++before)
        if (at.cell(before) < own.cell || at.cell(before) >= cell)
            refuse("has a row that sees a token which the step computes after it.");
    if (cell == at.place) return;
    if ((at.place + 1) % tokens_ == 0) refuse("has a branch that ends a chunk.");
    if (start > own.cell &&
        (at.cell(start - 1) != start - 1 || (own.cell + own.ordered) / tokens_ * tokens_ != start))
        refuse("has a branch in another chunk than the rows in order.");
}

void Chunks::check_page(const int32_t* pages, int64_t count, int64_t entry, int64_t there) const {
    const int64_t found = entry < count ? pages[entry] : -1;
    if (found < 0 || found >= there)
        refuse("goes on from chunk " + std::to_string(entry) + ", which has no page.");
}

void Chunks::keep(Run& run, const float* made) const {
    const int64_t floats = cells_.row_floats;
    const int64_t* slots = run.step.groups[static_cast<size_t>(cells_group_)].slots;
    for_rows(run.pool, run.active.count, floats, [&](int64_t i, int) {
        const int64_t slot = slots[run.active.at(i)];
        if (slot >= 0) std::copy_n(made + i * floats, floats, cells_.row(slot));
    });
}

}  // namespace ockham::ops
