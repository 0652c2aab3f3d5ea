// Where a layer finds what it keeps of a sequence: a row of each token of the chunk that is not full, and
// what all tokens up to a chunk's end have left. A chunk is a page, counted from the first token. Rows may
// branch, but for what leaves a state behind: the token that ends a chunk, and those after it, stand in
// order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "run.h"
#include "state/planes.h"

namespace ockham::ops {

// The rows of one sequence in a step, whose cells follow each other.
struct SequenceRows {
    int64_t first, count;  // among the active rows
    int64_t ordered;       // the first ones, whose tokens follow each other too; the rest branches
    int64_t cell;          // of the first
    const int32_t* cell_pages;
    const int32_t* end_pages;
    int64_t cell_page_count, end_page_count;
};

// A row whose token stands in `place` of its text. The tokens before it have their cells.
struct PlacedRow {
    const SequenceRows* own;
    int64_t place;
    int64_t context;       // tokens before this place stand in cells of the same number
    const int32_t* extra;  // and the cells of those from there on
    int64_t cell(int64_t token) const { return token < context ? token : extra[token - context]; }
};

class Chunks {
   public:
    // `cells` and `ends` are groups. Throws std::invalid_argument where rows leave tokens out or branch
    // where they may not, or where what they go on from has no page.
    Chunks(const Run& run, int64_t layer, int64_t cells, int64_t ends);
    Chunks(const Chunks&) = delete;
    Chunks& operator=(const Chunks&) = delete;

    int64_t tokens() const { return tokens_; }  // of a chunk
    const std::vector<SequenceRows>& sequences() const { return sequences_; }
    // The i-th active row.
    const PlacedRow& row(int64_t i) const { return rows_[static_cast<size_t>(i)]; }

    // What is kept of a cell before the step's rows, in the chunk of the first of them.
    const float* held(const SequenceRows& own, int64_t cell) const {
        return cells_.row(own.cell_pages[cell / tokens_] * tokens_ + cell % tokens_);
    }
    // What is kept at the end of a chunk; null where that has no page.
    float* end(const SequenceRows& own, int64_t chunk) const {
        const int64_t found = chunk < own.end_page_count ? own.end_pages[chunk] : -1;
        return found < 0 ? nullptr : ends_.row(found);
    }
    // Keeps `made`, a row of each active row, where that has a slot.
    void keep(Run& run, const float* made) const;

   private:
    [[noreturn]] void refuse(const std::string& why) const;
    PlacedRow placed(const Run& run, int64_t i) const;
    void check(const SequenceRows& own) const;
    void check_branch(const PlacedRow& at) const;
    void check_page(const int32_t* pages, int64_t count, int64_t entry, int64_t there) const;

    const int64_t layer_, cells_group_, tokens_;
    const LayerPlane cells_, ends_;
    std::vector<SequenceRows> sequences_;
    std::vector<PlacedRow> rows_;
};

}  // namespace ockham::ops
