// What a step must keep, so that no kernel reads or writes outside of its memory.
#include <stdexcept>
#include <string>

#include "state/planes.h"
#include "step.h"

namespace ockham {

namespace {

[[noreturn]] void refuse(const std::string& sentence) { throw std::invalid_argument(sentence); }

// That the lists of a group's visits add up, and that each row visits the block of its own key, so
// that it sees one.
void check_visits(const StepView& step, const GroupRowsView& rows, const GroupShape& shape) {
    const VisitsView& visits = rows.visits;
    if (visits.query_blocks == nullptr) return;
    if (visits.layers != static_cast<int64_t>(shape.layers.size()) ||
        visits.kv_heads != shape.kv_heads)
        refuse("the step's visits have another shape than the layers of their group.");
    for (int64_t i = 0; i < visits.list_count; ++i) {
        const int32_t start = visits.starts[i], stop = visits.starts[i + 1];
        if (start < 0 || start > stop || stop > visits.block_count)
            refuse("the step's lists of visited blocks do not add up.");
        for (int32_t at = start; at < stop; ++at)
            if (visits.blocks[at] < 0 || (at > start && visits.blocks[at] <= visits.blocks[at - 1]))
                refuse("a list of visited blocks does not ascend.");
    }
    const int64_t heads = visits.layers * visits.kv_heads;
    for (int64_t i = 0; i < visits.queries * heads; ++i)
        if (visits.lists[i] >= visits.list_count)
            refuse("the step has no list " + std::to_string(visits.lists[i]) +
                   " of visited blocks.");
    int64_t checked_query = -1, checked_block = -1;
    for (int64_t row = 0; row < step.rows; ++row) {
        const int64_t query = visits.query_blocks[row];
        const int64_t block = (rows.seen(row) - 1) / block_keys;
        if (query < 0 || (query == checked_query && block == checked_block)) continue;
        if (query >= visits.queries)
            refuse("row " + std::to_string(row) + " belongs to no query block of the step.");
        for (int64_t i = 0; i < heads; ++i) {
            const BlockList list = visits.list(row, i / visits.kv_heads, i % visits.kv_heads);
            if (list.every()) continue;
            const int32_t* found = list.from(block);
            if (found == list.end() || *found != block)
                refuse("row " + std::to_string(row) + " does not visit block " +
                       std::to_string(block) + ", in which its own key is.");
        }
        checked_query = query;
        checked_block = block;
    }
}

void check_choices(const StepView& step, const GroupRowsView& rows, const GroupShape& shape) {
    const ChoicesView& choices = rows.choices;
    if (choices.rows == nullptr) return;
    if (choices.layer_count != static_cast<int64_t>(shape.layers.size()))
        refuse("the step's choices have another shape than the layers of their group.");
    for (const ChoicesView::Choice& choice : choices.of) {
        const bool strides = choice.stride == 8 || choice.stride == 16;
        if (choice.first < 0 || choice.until < 0 || choice.tokens < 0 || choice.sinks < 0 ||
            choice.local < 1 || choice.among < -1 || choice.every < 1 ||
            block_keys % choice.every != 0 || !(choice.share >= 0.0 && choice.share <= 1.0) ||
            !(choice.within >= 0.0) || !(choice.threshold >= 0.0 && choice.threshold <= 1.0) ||
            (choice.chooser == nullptr && !strides))
            refuse("a choice of the step has a number that makes no sense.");
        if (choice.rules == nullptr) continue;
        if (choices.head_count != static_cast<int64_t>(shape.kv_heads))
            refuse("the step's choices have rules of another number of heads than their group has.");
        for (int64_t i = 0; i < choices.layer_count * choices.head_count; ++i) {
            const int32_t rule = choice.rules[i];
            const double share = choice.rule_shares[i];
            if (rule < ChoicesView::latest || rule > ChoicesView::means ||
                !(share >= 0.0 && share <= 1.0))
                refuse("a head of the step's choices has a rule or a share that makes no sense.");
        }
    }
    for (int64_t row = 0; row < step.rows; ++row)
        if (choices.rows[row] >= static_cast<int64_t>(choices.of.size()))
            refuse("row " + std::to_string(row) + " has no choice " +
                   std::to_string(choices.rows[row]) + ".");
}

void check_state(const StepView& step, const Planes& planes) {
    const int64_t groups = static_cast<int64_t>(planes.groups().size());
    if (static_cast<int64_t>(step.groups.size()) != groups)
        refuse("the step has rows of " + std::to_string(step.groups.size()) + " groups, and there are " +
               std::to_string(groups) + " groups of layers.");
    for (int64_t g = 0; g < groups; ++g) {
        const GroupShape& shape = planes.groups()[g];
        // Of a chunk of tokens that fills a page one row may be kept, at its end.
        const bool ends = shape.row_floats > 0 && shape.page_tokens == 1;
        if (shape.page_tokens != step.page_tokens && !ends)
            refuse("the step has pages of " + std::to_string(step.page_tokens) +
                   " tokens, the planes of " + std::to_string(planes.groups()[g].page_tokens) +
                   ".");
        const GroupRowsView& rows = step.groups[g];
        const TableView& table = rows.table;
        if (step.sequences <= 0 && step.rows != 0) refuse("the step has rows and no sequence.");
        for (int64_t s = 0; s < step.sequences; ++s)
            if (table.starts[s] < 0 || table.starts[s] > table.starts[s + 1] ||
                table.starts[s + 1] > table.length)
                refuse("the page tables of the step do not add up.");
        const int64_t slots = ends ? shape.pages * step.page_tokens : planes.slots(g);
        // Of a layer without keys and values not every row is kept.
        const bool all = planes.groups()[g].row_floats == 0;
        for (int64_t row = 0; row < step.rows; ++row)
            if ((all && rows.slots[row] < 0) || rows.slots[row] >= slots)
                refuse("row " + std::to_string(row) + " is written to slot " +
                       std::to_string(rows.slots[row]) + " of " + std::to_string(slots) + ".");
        for (int64_t row = 0; row < step.rows; ++row) {
            if (rows.context[row] < 0) refuse("the context of a row is negative.");
            if (rows.extra != nullptr &&
                (rows.extra_starts[row] < 0 || rows.extra_starts[row] > rows.extra_starts[row + 1] ||
                 rows.extra_starts[row + 1] > rows.extra_count))
                refuse("the extra cells of the step do not add up.");
        }
        check_visits(step, rows, planes.groups()[g]);
        check_choices(step, rows, planes.groups()[g]);
    }
}

void check_rows(const StepView& step, int64_t vocabulary, int64_t positions) {
    for (int64_t row = 0; row < step.rows; ++row) {
        const int64_t own = step.embedding_of == nullptr ? -1 : step.embedding_of[row];
        if (own >= step.embeddings_rows)
            refuse("row " + std::to_string(row) + " has no embedding " + std::to_string(own) + ".");
        if (own < 0 && (step.ids[row] < 0 || step.ids[row] >= vocabulary))
            refuse("row " + std::to_string(row) + " has the token id " +
                   std::to_string(step.ids[row]) + ", beyond a vocabulary of " +
                   std::to_string(vocabulary) + ".");
        if (positions > 0 && (step.positions[row] < 0 || step.positions[row] >= positions))
            refuse("row " + std::to_string(row) + " has the position " +
                   std::to_string(step.positions[row]) + " of " + std::to_string(positions) +
                   " that the model has learned.");
        if (step.sequence[row] < 0 || step.sequence[row] >= step.sequences)
            refuse("row " + std::to_string(row) + " belongs to no sequence of the step.");
    }
}

void check_wanted(const int32_t* rows, int64_t count, int64_t of, const char* what) {
    for (int64_t i = 0; i < count; ++i)
        if (rows[i] < 0 || rows[i] >= of)
            refuse(std::string(what) + " of row " + std::to_string(rows[i]) + " of " +
                   std::to_string(of) + ".");
}

void check_active(const StepView& step) {
    for (const ActiveRows& active : step.active) {
        const RowSet& rows = active.rows;
        check_wanted(rows.which, rows.count, step.rows, "an operation is active");
        for (int64_t i = 1; i < rows.count; ++i)
            if (rows.which[i - 1] >= rows.which[i])
                refuse("the active rows of the step are not in order.");
    }
}

void check_sparing(const StepView& step, int64_t hidden) {
    const SparingView& sparing = step.sparing;
    if (sparing.rows == nullptr) return;
    for (int64_t row = 0; row < step.rows; ++row)
        if (sparing.rows[row] < -1 || sparing.rows[row] >= sparing.rules)
            refuse("row " + std::to_string(row) + " decides by rule " +
                   std::to_string(sparing.rows[row]) + " of " + std::to_string(sparing.rules) + ".");
    for (int64_t rule = 0; rule < sparing.rules; ++rule)
        if (sparing.lengths[rule] < 0)
            refuse("a rule of the step skips " + std::to_string(sparing.lengths[rule]) +
                   " feed-forwards; that is 0 or more.");
    const RoutersView& routers = sparing.routers;
    const auto check_widths = [](const int32_t* widths, int64_t count) {
        for (int64_t i = 0; i < count; ++i)
            if (widths[i] < -1)
                refuse("rows of the step run " + std::to_string(widths[i]) +
                       " neurons; that is -1 or more.");
    };
    if (sparing.told != nullptr) check_widths(sparing.told, sparing.layers * step.rows);
    if (sparing.routed == nullptr) return;
    if (routers.layers != sparing.layers || routers.hidden != hidden || routers.choices < 1)
        refuse("the step's routers are for " + std::to_string(routers.layers) + " layers of width " +
               std::to_string(routers.hidden) + ", and the model has " +
               std::to_string(sparing.layers) + " of width " + std::to_string(hidden) + ".");
    check_widths(routers.widths, routers.count * routers.layers * routers.choices);
    for (int64_t row = 0; row < step.rows; ++row)
        if (sparing.routed[row] < -1 || sparing.routed[row] >= routers.count)
            refuse("row " + std::to_string(row) + " follows router " +
                   std::to_string(sparing.routed[row]) + " of " + std::to_string(routers.count) + ".");
}

}  // namespace

void check_step(const StepView& step, const Planes& planes, int64_t hidden, int64_t vocabulary,
                int64_t positions) {
    check_state(step, planes);
    check_rows(step, vocabulary, positions);
    if (step.embeddings != nullptr && step.embeddings_width != hidden)
        refuse("the step's embeddings have another width than the model.");
    if (!step.adapters.empty() && static_cast<int64_t>(step.adapters.size()) != step.sequences)
        refuse("the step has adapters for " + std::to_string(step.adapters.size()) + " of " +
               std::to_string(step.sequences) + " sequences.");
    check_wanted(step.wants_logits, step.logits_rows, step.rows, "logits are wanted");
    check_wanted(step.wants_argmax, step.argmax_rows, step.rows, "an argmax is wanted");
    check_wanted(step.wants_recall, step.recall_rows, step.rows, "recall is wanted");
    check_active(step);
    check_sparing(step, hidden);
    for (const LayerRows& wanted : step.wants_hidden)
        check_wanted(wanted.rows, wanted.count, step.rows, "hidden states are wanted");
    for (const LayerRows& wanted : step.wants_queries)
        check_wanted(wanted.rows, wanted.count, step.rows, "queries are wanted");
    for (const auto* scores : {&step.wants_scores, &step.wants_score_sums})
        for (const LayerRows& wanted : *scores)
            check_wanted(wanted.rows, wanted.count, step.rows, "scores are wanted");
    for (const LayerSets& wanted : step.wants_score_totals) {
        check_wanted(wanted.rows, wanted.row_count, step.rows, "sums of scores are wanted");
        if (wanted.starts[0] != 0 || wanted.starts[wanted.count] != wanted.row_count)
            refuse("the sets of rows whose scores are summed do not begin and end with the rows.");
        for (int64_t i = 0; i < wanted.count; ++i)
            if (wanted.starts[i] > wanted.starts[i + 1])
                refuse("the sets of rows whose scores are summed are not in order.");
    }
}

}  // namespace ockham
