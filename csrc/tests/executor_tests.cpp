// Steps of every kind through programs with every operation, on memory that fits them exactly.
#include "executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <memory>

#include "kernels/sampler.h"
#include "kernels/threads.h"
#include "ops/attend.h"
#include "ops/attention_input.h"
#include "ops/attention_output.h"
#include "ops/embed.h"
#include "ops/experts.h"
#include "ops/feed_forward.h"
#include "ops/head.h"
#include "ops/route.h"
#include "state/planes.h"
#include "tests/tests.h"

namespace ockham::tests {

namespace {

uint32_t state = 1;
float random_float() {  // in [-1, 1)
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) * (2.0f / 16777216.0f) - 1.0f;
}

std::deque<Buffer> memory;

PackedMatrix matrix(int64_t outputs, int64_t inputs) {
    PackedMatrix result = matrix_of("fp32", outputs, inputs);
    memory.emplace_back();
    const int64_t count = static_cast<int64_t>(result.weight_bytes / sizeof(float));
    float* weight = memory.back().take<float>(count);
    const float scale = 1.7f / std::sqrt(static_cast<float>(inputs));
    for (int64_t i = 0; i < count; ++i) weight[i] = random_float() * scale;
    result.weight = weight;
    return result;
}

std::vector<float> vector(int64_t length, float mean) {
    std::vector<float> result(static_cast<size_t>(length));
    for (float& value : result) value = mean + 0.2f * random_float();
    return result;
}

ops::Norm norm(int64_t length) { return {vector(length, 1.0f), 1e-5f, false, {}}; }

struct Sizes {
    int64_t hidden, heads, kv_heads, head_dim, page_tokens, window;
    Element keys, values;
};

constexpr int64_t vocabulary = 83, page_count = 400, layers = 2;

// The operation that `set` makes of an empty one.
template <class Op, class F>
std::shared_ptr<const ops::Operation> made(F set) {
    auto op = std::make_shared<Op>();
    set(*op);
    return op;
}

Program::Operations program(const Sizes& s) {
    Program::Operations result;
    result.push_back(made<ops::Embed>([&](ops::Embed& op) {
        op.table = matrix(vocabulary, s.hidden);
        op.scale = 1.5f;
    }));
    for (int64_t layer = 0; layer < layers; ++layer) {
        const int64_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim, inner = 37;
        result.push_back(made<ops::AttentionInput>([&](ops::AttentionInput& op) {
            op.layer = layer;
            op.heads = s.heads;
            op.kv_heads = s.kv_heads;
            op.head_dim = s.head_dim;
            op.qkv = matrix(q + 2 * kv, s.hidden);
            op.norm = norm(s.hidden);
            op.bias = vector(q + 2 * kv, 0.0f);
            op.norm_whole = layer == 1;
            op.q_norm = norm(op.norm_whole ? q : s.head_dim);
            op.k_norm = norm(op.norm_whole ? kv : s.head_dim);
            op.rope = {vector(s.head_dim / 2, 0.5f), 1.1f};
        }));
        result.push_back(made<ops::Attend>([&](ops::Attend& op) {
            op.layer = layer;
            op.shape = {s.heads, s.kv_heads, s.head_dim, 0.3f, layer == 0 ? 5.0f : 0.0f};
            op.window = s.window;
        }));
        result.push_back(made<ops::AttentionOutput>([&](ops::AttentionOutput& op) {
            op.layer = layer;
            op.out = matrix(s.hidden, q);
            op.bias = vector(s.hidden, 0.0f);
            op.post_norm = norm(s.hidden);
            op.residual_scale = 0.7f;
        }));
        if (layer == 0) {
            result.push_back(made<ops::FeedForward>([&](ops::FeedForward& op) {
                op.layer = layer;
                op.gate_up = matrix(2 * inner, s.hidden);
                op.down = matrix(s.hidden, inner);
                op.activation = Activation::gelu_tanh;
                op.norm = norm(s.hidden);
                op.gate_up_bias = vector(2 * inner, 0.0f);
                op.down_bias = vector(s.hidden, 0.0f);
                op.post_norm = norm(s.hidden);
            }));
            continue;
        }
        result.push_back(made<ops::Route>([&](ops::Route& op) {
            op.layer = layer;
            op.router = matrix(5, s.hidden);
            op.top_k = 2;
            op.normalise = true;
            op.norm = norm(s.hidden);
        }));
        result.push_back(made<ops::Experts>([&](ops::Experts& op) {
            op.layer = layer;
            for (int expert = 0; expert < 5; ++expert) {
                op.gate_up.push_back(matrix(2 * inner, s.hidden));
                op.down.push_back(matrix(s.hidden, inner));
            }
            op.shared_gate_up = matrix(2 * 11, s.hidden);
            op.shared_down = matrix(s.hidden, 11);
            op.shared_gate = matrix(1, s.hidden);
            op.post_norm = norm(s.hidden);
        }));
    }
    result.push_back(made<ops::Head>([&](ops::Head& op) {
        op.out = matrix(vocabulary, s.hidden);
        op.norm = norm(s.hidden);
        op.bias = vector(vocabulary, 0.0f);
        op.scale = 0.9f;
        op.softcap = 4.0f;
    }));
    return result;
}

// A step of one sequence. Arrays on the heap and of the exact length, so that reading past one shows.
struct OwnedStep {
    std::vector<int32_t> ids, positions, sequence, context, extra, extra_starts, wanted, wanted_starts;
    std::vector<int32_t> pages, starts;
    std::vector<int64_t> slots;
    std::vector<int32_t> query_blocks, lists, list_starts, blocks;
    int64_t kv_heads = 0;

    // Every head but the first of each layer visits the first block of keys and the row's own.
    void visit(int64_t heads) {
        kv_heads = heads;
        list_starts.push_back(0);
        const int32_t first = positions.front() / block_keys;
        for (const int32_t position : positions) {
            const int32_t block = position / block_keys, query = block - first;
            query_blocks.push_back(query);
            if (query < static_cast<int32_t>(list_starts.size()) - 1) continue;
            blocks.push_back(0);
            if (block > 0) blocks.push_back(block);
            list_starts.push_back(static_cast<int32_t>(blocks.size()));
            for (int64_t i = 0; i < layers * heads; ++i) lists.push_back(i % heads ? query : -1);
        }
    }

    StepView view(int64_t page_tokens, bool outputs) const {
        StepView view;
        view.rows = static_cast<int64_t>(ids.size());
        view.sequences = 1;
        view.ids = ids.data();
        view.positions = positions.data();
        view.sequence = sequence.data();
        GroupRowsView group;
        group.table = {pages.data(), starts.data(), static_cast<int64_t>(pages.size())};
        group.slots = slots.data();
        group.context = context.data();
        if (!extra.empty()) {
            group.extra = extra.data();
            group.extra_starts = extra_starts.data();
            group.extra_count = static_cast<int64_t>(extra.size());
        }
        if (!query_blocks.empty()) {
            const auto queries = static_cast<int64_t>(list_starts.size()) - 1;
            group.visits = {query_blocks.data(), lists.data(), queries, layers, kv_heads,
                            list_starts.data(), queries, blocks.data(),
                            static_cast<int64_t>(blocks.size())};
        }
        view.groups = {group};
        view.page_tokens = page_tokens;
        view.wants_logits = wanted.data();
        view.logits_rows = static_cast<int64_t>(wanted.size());
        if (outputs) {
            view.wants_hidden = {{-1, wanted.data(), view.logits_rows},
                                 {1, wanted.data(), view.logits_rows}};
            view.wants_scores = {{0, wanted.data(), view.logits_rows}};
            view.wants_queries = {{1, wanted.data(), view.logits_rows}};
            view.wants_score_sums = {{0, wanted.data(), view.logits_rows}};
            view.wants_score_totals = {{0, wanted.data(), wanted_starts.data(), 1, view.logits_rows}};
        }
        return view;
    }
};

// Rows of cells [begin, end); as a tree, every row is the child of the one before it, so that the
// result must be that of the chain.
OwnedStep make_step(int64_t begin, int64_t end, int64_t page_tokens, bool tree) {
    OwnedStep step;
    step.extra_starts.push_back(0);
    const int64_t pages = (end + page_tokens - 1) / page_tokens;
    for (int64_t p = 0; p < pages; ++p) step.pages.push_back(static_cast<int32_t>(page_count - 1 - p));
    step.starts = {0, static_cast<int32_t>(pages)};
    for (int64_t cell = begin; cell < end; ++cell) {
        step.ids.push_back(static_cast<int32_t>(cell * 31 % vocabulary));
        step.positions.push_back(static_cast<int32_t>(cell));
        step.sequence.push_back(0);
        step.context.push_back(static_cast<int32_t>(tree ? begin : cell + 1));
        if (tree)
            for (int64_t i = begin; i <= cell; ++i) step.extra.push_back(static_cast<int32_t>(i));
        step.extra_starts.push_back(static_cast<int32_t>(step.extra.size()));
        step.slots.push_back(step.pages[cell / page_tokens] * page_tokens + cell % page_tokens);
        step.wanted.push_back(static_cast<int32_t>(cell - begin));
    }
    step.wanted_starts = {0, static_cast<int32_t>(end - begin)};
    return step;
}

// The likeliest token of every row of a step that has run before, whose state is written again.
std::vector<int64_t> argmax(Executor& executor, const OwnedStep& step, int64_t page_tokens) {
    StepView view = step.view(page_tokens, false);
    std::swap(view.wants_logits, view.wants_argmax);
    std::swap(view.logits_rows, view.argmax_rows);
    std::unique_ptr<Run> run = executor.begin(std::move(view));
    executor.run(*run, 0, executor.size());
    std::vector<int64_t> tokens;
    for (const Peak& peak : run->argmax) tokens.push_back(peak.token);
    executor.recycle(std::move(run->activations));
    return tokens;
}

// Logits of cells [0, length), computed in chunks of the given lengths, the last of which repeats.
std::vector<float> logits(ThreadPool& pool, Isa isa, const Sizes& s,
                          const Program::Operations& operations, int64_t length,
                          std::vector<int64_t> chunks, bool trees, bool visits = false) {
    Planes planes({GroupShape{{0, 1}, s.kv_heads, s.head_dim, s.keys, s.values, page_count, s.page_tokens}});
    Executor executor(pool, isa, planes, operations);
    std::vector<float> result;
    for (int64_t begin = 0, number = 0; begin < length; ++number) {
        const int64_t chunk =
            chunks[std::min(number, static_cast<int64_t>(chunks.size()) - 1)];
        const int64_t end = std::min(length, begin + chunk);
        OwnedStep step = make_step(begin, end, s.page_tokens, trees && begin > 0);
        if (visits) step.visit(s.kv_heads);
        std::unique_ptr<Run> run = executor.begin(step.view(s.page_tokens, true));
        executor.run(*run, 0, 3);
        executor.run(*run, 3, executor.size());
        const float* from = run->logits.memory->get<float>();
        result.insert(result.end(), from, from + (end - begin) * vocabulary);
        check(run->hidden_states.size() == 2, "hidden states of two places are given");
        check(run->queries.size() == 1, "queries of one layer are given");
        for (const LayerScores* scores : {run->scores.data(), run->score_sums.data()}) {
            float total = 0.0f;
            for (const float score : scores->rows.back()) total += score;
            check(std::fabs(total - static_cast<float>(s.heads)) < 1e-3f,
                  "a row's scores add up to its heads");
        }
        double total = 0.0;
        for (const double sum : run->score_totals[0].sets[0]) total += sum;
        check(std::fabs(total - static_cast<double>(s.heads * (end - begin))) < 1e-3 * (end - begin),
              "the total of rows' scores adds up to their heads");
        const std::vector<int64_t> likeliest = argmax(executor, step, s.page_tokens);
        for (int64_t row = 0; row < end - begin; ++row) {
            const float* of_row = from + row * vocabulary;
            check(likeliest[row] == std::max_element(of_row, of_row + vocabulary) - of_row,
                  "an argmax without logits is that of the logits");
        }
        executor.recycle(std::move(run->activations));
        begin = end;
    }
    return result;
}

void chunks_trees_and_threads() {
    constexpr Element fp32 = Element::fp32, bf16 = Element::bf16, int8 = Element::int8,
                      int4 = Element::int4;
    const Sizes sizes[] = {
        {48, 4, 2, 16, 16, 0, fp32, fp32},  {48, 4, 2, 16, 16, 21, bf16, bf16},
        {40, 3, 3, 20, 16, 0, bf16, bf16},  {32, 8, 1, 64, 32, 0, fp32, fp32},
        {36, 2, 1, 8, 5, 30, fp32, fp32},   {64, 2, 2, 128, 7, 0, bf16, bf16},
        {48, 4, 2, 16, 16, 21, int8, int8}, {40, 3, 3, 20, 5, 0, int4, int4},
        {64, 2, 2, 72, 7, 0, int8, int4},   {32, 8, 1, 64, 32, 0, int4, int8},
    };
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
        if (!supported(isa)) continue;
        ThreadPool one(1), two(2);
        for (const Sizes& s : sizes) {
            state = 7;
            memory.clear();
            const Program::Operations operations = program(s);
            const int64_t length = 83;
            const auto same = [&](const std::vector<float>& a, const std::vector<float>& b) {
                return a.size() == b.size() &&
                       std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
            };
            const std::vector<float> whole = logits(one, isa, s, operations, length, {length}, false);
            check(same(whole, logits(two, isa, s, operations, length, {60, 1}, false)),
                  "chunks and threads change no bit");
            check(same(whole, logits(two, isa, s, operations, length, {62, 9}, true)),
                  "a tree that is a chain has the chain's bits");
        }
        // More than one part of keys, as tasks of their own.
        const Sizes s{16, 2, 1, 16, 16, 0, bf16, bf16};
        memory.clear();
        const Program::Operations operations = program(s);
        const std::vector<float> whole = logits(one, isa, s, operations, 1100, {1100}, false);
        const std::vector<float> parts = logits(two, isa, s, operations, 1100, {1098, 1}, false);
        check(std::memcmp(whole.data(), parts.data(), whole.size() * sizeof(float)) == 0,
              "parts of keys that are tasks change no bit");
        // Blocks that are left out, of a long text and of a window.
        for (const int64_t window : {0, 150}) {
            const Sizes streaming{16, 4, 2, 16, 16, window, window > 0 ? int8 : bf16,
                                  window > 0 ? int8 : bf16};
            memory.clear();
            const Program::Operations ops = program(streaming);
            const auto visited = [&](ThreadPool& pool, std::vector<int64_t> chunks, bool trees) {
                return logits(pool, isa, streaming, ops, 1100, std::move(chunks), trees, true);
            };
            const std::vector<float> some = visited(one, {1100}, false);
            const std::vector<float> all =
                logits(one, isa, streaming, ops, 1100, {1100}, false, false);
            const size_t bytes = some.size() * sizeof(float);
            check(std::memcmp(some.data(), all.data(), bytes) != 0, "some keys are left out");
            check(std::memcmp(some.data(), visited(two, {500, 591, 1}, false).data(), bytes) == 0,
                  "chunks and threads change no bit where blocks are left out");
            check(std::memcmp(some.data(), visited(two, {1095, 5}, true).data(), bytes) == 0,
                  "a tree has the chain's bits where blocks are left out");
        }
    }
    memory.clear();
}

// Rows of all sizes, with a part in common, and such that have no codes.
void codes_of_four_bits() {
    state = 11;
    for (int number = 0; number < 400; ++number) {
        const int64_t length = 2 + number % 130;
        std::vector<float> row(static_cast<size_t>(length));
        const float size = number % 3 == 0 ? 1e-3f : 40.0f, common = 30.0f * random_float();
        for (float& value : row) value = common + size * random_float();
        if (number % 50 == 1) std::fill(row.begin(), row.end(), number == 1 ? 1e-33f : 3.25f);
        if (number % 50 == 2) row.back() = number == 2 ? __builtin_nanf("") : __builtin_inff();
        std::vector<int8_t> codes(row.size()), others(row.size());
        const uint32_t grid = row_kernels(Isa::portable).to_int4(row.data(), length, codes.data());
        for (const int8_t code : codes) check(code >= 0 && code <= 15, "a code has 4 bits");
        for (const Isa isa : {Isa::avx2, Isa::avx512}) {
            if (!supported(isa)) continue;
            check(row_kernels(isa).to_int4(row.data(), length, others.data()) == grid &&
                      others == codes,
                  "instruction sets make the same codes of a row");
        }
    }
}

void planes_and_sampler() {
    // Bytes of a key and of a value, of 20 elements.
    const std::tuple<Element, Element, size_t> types[] = {
        {Element::fp32, Element::fp32, 160}, {Element::bf16, Element::bf16, 80},
        {Element::int8, Element::int8, 48},  {Element::int4, Element::int4, 28},
        {Element::int8, Element::int4, 38},
    };
    for (const auto& [keys, values, row] : types) {
        Planes planes({GroupShape{{0, 3}, 2, 20, keys, values, 6, 5}});
        const std::vector<int64_t> slots = {29, 0, 7, 4}, others = {0, 7, 4, 28};
        const size_t bytes = 2 * 4 * 2 * row;
        std::vector<uint8_t> state(bytes), found(bytes);
        for (size_t i = 0; i < bytes; ++i) state[i] = static_cast<uint8_t>(i * 7);
        planes.write(0, slots.data(), 4, state.data());
        planes.copy(0, -1, -1, slots.data(), others.data(), 4);
        planes.read(0, others.data(), 4, found.data());
        check(state == found, "copied state is the state");
    }
    codes_of_four_bits();
    std::vector<float> row(1000);
    state = 3;
    for (float& value : row) value = 5.0f * random_float();
    SamplerScratch scratch;
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
        if (!supported(isa)) continue;
        for (int position = 0; position < 50; ++position) {
            DrawView draw;
            draw.temperature = 0.5 + 0.1 * position;
            draw.top_k = position % 3 * 40;
            draw.top_p = position % 2 ? 1.0 : 0.9;
            draw.min_p = position % 5 ? 0.0 : 0.01;
            draw.seed = 99;
            draw.position = static_cast<uint32_t>(position);
            const int64_t token = sample(isa, row.data(), 1000, draw, scratch);
            check(token >= 0 && token < 1000, "a token of the vocabulary is drawn");
            check(token == sample(Isa::portable, row.data(), 1000, draw, scratch),
                  "instruction sets draw the same token");
        }
    }
}

// Rows that skip by what they saw, that choose by routers, that are told, and that run everything.
struct Spares {
    std::vector<int32_t> rows, routed, told, starts, ends, widths;
    std::vector<float> weights, biases;
    std::vector<double> thresholds{0.5};
    std::vector<int32_t> lengths{1}, firsts{0}, stops{layers};

    Spares(const Program::Operations& operations, int64_t hidden, int64_t count) {
        for (int64_t i = 0; i < static_cast<int64_t>(operations.size()); ++i) {
            if (operations[i]->neurons() == 0) continue;
            starts.push_back(static_cast<int32_t>(i));
            ends.push_back(static_cast<int32_t>(i + 1));
        }
        const auto found = static_cast<int64_t>(starts.size());
        for (int64_t row = 0; row < count; ++row) {
            rows.push_back(row % 4 == 0 ? 0 : -1);
            routed.push_back(row % 4 == 1 ? 0 : -1);
        }
        for (int64_t layer = 0; layer < found; ++layer) {
            widths.insert(widths.end(), {-1, 16, 0});
            for (int64_t row = 0; row < count; ++row) told.push_back(row % 4 == 2 ? 16 : 0);
        }
        for (int64_t i = 0; i < found * 3 * hidden; ++i) weights.push_back(random_float());
        biases.resize(static_cast<size_t>(found * 3));
    }

    SparingView view(int64_t hidden) const {
        SparingView view;
        view.rows = rows.data();
        view.thresholds = thresholds.data();
        view.lengths = lengths.data();
        view.firsts = firsts.data();
        view.stops = stops.data();
        view.rules = 1;
        view.starts = starts.data();
        view.ends = ends.data();
        view.layers = static_cast<int64_t>(starts.size());
        view.routed = routed.data();
        view.routers = {widths.data(), weights.data(), biases.data(), 1, view.layers, 3, hidden};
        view.told = told.data();
        return view;
    }
};

void widths_of_rows() {
    constexpr int64_t length = 41;
    const Sizes s{48, 4, 2, 16, 16, 0, Element::fp32, Element::fp32};
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
        if (!supported(isa)) continue;
        state = 11;
        memory.clear();
        const Program::Operations operations = program(s);
        const Spares spares(operations, s.hidden, length);
        ThreadPool one(1), two(2);
        std::vector<std::vector<float>> found;
        for (ThreadPool* pool : {&one, &two}) {
            Planes planes({GroupShape{{0, 1}, s.kv_heads, s.head_dim, s.keys, s.values, page_count,
                                      s.page_tokens}});
            Executor executor(*pool, isa, planes, operations);
            const OwnedStep step = make_step(0, length, s.page_tokens, false);
            StepView view = step.view(s.page_tokens, true);
            view.sparing = spares.view(s.hidden);
            std::unique_ptr<Run> run = executor.begin(std::move(view));
            executor.run(*run, 0, executor.size());
            const float* from = run->logits.memory->get<float>();
            found.emplace_back(from, from + length * vocabulary);
            check(run->spared.ran.size() == spares.told.size(), "each row says what it ran");
            for (size_t i = 0; i < spares.told.size(); ++i)
                check(i % length % 4 != 2 || run->spared.ran[i] == 16, "a row runs what it is told");
            executor.recycle(std::move(run->activations));
        }
        check(std::memcmp(found[0].data(), found[1].data(), found[0].size() * sizeof(float)) == 0,
              "threads change no bit of rows of different widths");
    }
}

const Added first{"chunks, trees and threads change no bit", chunks_trees_and_threads};
const Added third{"rows run as much of a feed-forward as is decided", widths_of_rows};
const Added second{"planes and sampler stay within their memory", planes_and_sampler};

}  // namespace

}  // namespace ockham::tests
