// What every chooser is: how a query tells, from a short summary of 16 keys, how well it may score with
// them, so that only the blocks that promise most are read.
//
// A chooser is one file, NAME.cpp in this folder; no other file names it. The build compiles that file for
// each instruction set with OCKHAM_ISA_NAMESPACE defined, and once more without: there a static
// `AddedChooser` puts it into the table, as kinds/kind.h says of kinds. What differs between instruction
// sets is the function that scores.
//
// A summary is made of the keys as they are stored, of one head and of 16 neighbouring keys, once, and
// from those alone. So it has the same bits wherever and whenever it is made.
#pragma once

#include <cstdint>
#include <string>

#include "isa/isa.h"
#include "kernels/layer_kernels.h"
#include "state/key_book.h"

namespace ockham {

// Writes to scores[i * stride + g] how well the prepared query i scores at best, or is thought to, with the
// keys of summary g, or the sum over its keys (Chooser::sums). `width` is that of a stored key; `book` is
// null unless the chooser looks up.
using ScoreSummaries = void(const uint8_t* queries, int64_t query_count, int64_t width,
                            const KeyBook* book, const uint8_t* const* summaries, int64_t count, float* scores,
                            int64_t stride);

struct Chooser {
    const char* name;
    // Bytes of the summary of 16 keys, and of a prepared query, which is a multiple of 64.
    int64_t (*summary_bytes)(int64_t width);
    int64_t (*query_bytes)(int64_t width);
    // Of 16 keys, [16][width].
    void (*summarise)(const float* keys, int64_t width, const KeyBook* book, uint8_t* summary);
    // Of a query that is scaled as for attention, [width].
    void (*prepare)(const float* q, int64_t width, uint8_t* query);
    ScoreSummaries* score[isa_count];
    // A score is the sum over keys of e^(score with the key - what is the same for all of the query's).
    bool sums = false;
    // It needs the codebooks of the layer's heads.
    bool looks_up = false;
};

// Choosers of one program, at most. Each has its bit in LayerPlane::fresh.
constexpr int most_choosers = 8;

// A row of the table. `chooser` has to live as long as the program.
struct AddedChooser {
    explicit AddedChooser(const Chooser& chooser);
};

// By name; null if there is none.
const Chooser* find_chooser(const std::string& name);

// Its place in the table, from 0 on, in the order of names.
int number_of(const Chooser& chooser);

}  // namespace ockham
