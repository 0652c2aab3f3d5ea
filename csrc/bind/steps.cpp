// Steps: what the arrays of an ockham.core.step.Step hold, run, and what comes back.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "bind/bound_executor.h"
#include "adapter.h"
#include "choosers/chooser.h"
#include "executor.h"
#include "state/planes.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

namespace {

// A run with the step that it points into.
struct BoundRun {
    nb::object executor;
    nb::object step;
    std::vector<nb::ndarray<nb::ro>> arrays;
    std::unique_ptr<Run> run;

    ~BoundRun() {
        if (run && executor)
            nb::cast<BoundExecutor&>(executor).executor->recycle(std::move(run->activations));
    }
};

// What core.choices.Choices has of each choice.
constexpr int64_t choice_numbers = 8, choice_shares = 3;
// The choosers of rows that choose together: all heads by one rule, each by its own.
constexpr const char *together = "antidiagonals", *by_head = "by_head";

class StepReader {
   public:
    StepReader(nb::handle step, std::vector<nb::ndarray<nb::ro>>& arrays)
        : step_(step), arrays_(arrays) {}

    StepView read() {
        StepView view;
        view.ids = array<int32_t>("ids", view.rows);
        view.positions = per_row<int32_t>("positions", view.rows);
        view.sequence = per_row<int32_t>("sequence", view.rows);
        view.page_tokens = nb::cast<int64_t>(step_.attr("page_tokens"));
        for (nb::handle group : step_.attr("groups")) view.groups.push_back(rows_of(group, view));
        view.wants_logits = array<int32_t>("wants_logits", view.logits_rows);
        view.wants_argmax = array<int32_t>("wants_argmax", view.argmax_rows);
        view.wants_recall = array<int32_t>("wants_recall", view.recall_rows);
        view.candidates = nb::cast<int64_t>(step_.attr("candidates"));
        if (view.candidates < 0) throw std::invalid_argument("candidates are at least 0.");
        if (!step_.attr("embeddings").is_none() && !step_.attr("embedding_of").is_none()) {
            const auto embeddings = nb::cast<Table<float>>(step_.attr("embeddings"));
            arrays_.emplace_back(embeddings);
            view.embeddings = embeddings.data();
            view.embeddings_rows = static_cast<int64_t>(embeddings.shape(0));
            view.embeddings_width = static_cast<int64_t>(embeddings.shape(1));
            view.embedding_of = per_row<int32_t>("embedding_of", view.rows);
        }
        view.wants_hidden = rows_by_layer("wants_hidden");
        view.wants_scores = rows_by_layer("wants_scores");
        view.wants_score_sums = rows_by_layer("wants_score_sums");
        view.wants_queries = rows_by_layer("wants_queries");
        const nb::dict totals = step_.attr("wants_score_totals");
        for (auto [layer, sets] : totals) {
            LayerSets one;
            one.layer = nb::cast<int64_t>(layer);
            one.rows = vector<int32_t>(sets.attr("rows"), one.row_count, "rows of sets");
            one.starts = vector<int32_t>(sets.attr("starts"), one.count, "starts of sets");
            if (--one.count < 0) throw std::invalid_argument("the starts of sets of rows are empty.");
            view.wants_score_totals.push_back(one);
        }
        for (nb::handle active : step_.attr("active")) {
            ActiveRows one;
            one.start = nb::cast<int64_t>(active.attr("start"));
            one.stop = nb::cast<int64_t>(active.attr("stop"));
            one.rows.which = vector<int32_t>(active.attr("rows"), one.rows.count, "active rows");
            view.active.push_back(one);
        }
        const nb::dict leading = step_.attr("leading");
        for (auto [operation, count] : leading)
            view.leading.push_back({nb::cast<int64_t>(operation), nb::cast<int64_t>(count)});
        const nb::object deeper = step_.attr("deeper");
        if (!deeper.is_none()) {
            view.passes = static_cast<int64_t>(nb::len(deeper));
            view.deeper = shaped<double, 2>(deeper, {view.passes, view.rows}, "scores of passes");
        }
        const nb::object sparing = step_.attr("sparing");
        if (!sparing.is_none()) view.sparing = sparing_of(sparing, view.rows);
        if (!step_.attr("adapters").is_none())
            for (nb::handle adapter : step_.attr("adapters"))
                view.adapters.push_back(adapter.is_none() ? nullptr
                                                          : &nb::cast<const Adapter&>(adapter));
        return view;
    }

   private:
    GroupRowsView rows_of(nb::handle group, StepView& view) {
        GroupRowsView found;
        const nb::object tables = group.attr("tables");
        TableView& table = found.table;
        int64_t starts = 0, rows = 0;
        table.pages = vector<int32_t>(tables.attr("pages"), table.length, "pages");
        table.starts = vector<int32_t>(tables.attr("starts"), starts, "starts");
        if (!view.groups.empty() && starts - 1 != view.sequences)
            throw std::invalid_argument("the step's page tables are of other sequences.");
        view.sequences = starts - 1;
        found.slots = vector<int64_t>(group.attr("slots"), rows, "slots");
        check(rows, view.rows, "slots");
        found.context = vector<int32_t>(group.attr("context"), rows, "context");
        check(rows, view.rows, "context");
        const nb::object visits = group.attr("visits");
        if (!visits.is_none()) found.visits = visits_of(visits, view.rows);
        const nb::object choices = group.attr("choices");
        if (!choices.is_none()) found.choices = choices_of(choices, view.rows);
        const nb::object extra = group.attr("extra");
        if (extra.is_none()) return found;
        found.extra = vector<int32_t>(extra, found.extra_count, "extra");
        found.extra_starts = vector<int32_t>(group.attr("extra_starts"), starts, "extra_starts");
        check(starts - 1, view.rows, "extra_starts, not counting the first,");
        return found;
    }
    SparingView sparing_of(nb::handle sparing, int64_t rows) {
        SparingView found;
        int64_t count = 0;
        found.rows = vector<int32_t>(sparing.attr("rows"), count, "rules of rows");
        check(count, rows, "rules of rows");
        found.thresholds = vector<double>(sparing.attr("thresholds"), found.rules, "thresholds");
        const auto of_rules = [&](const char* field) {
            const auto* data = vector<int32_t>(sparing.attr(field), count, field);
            if (count != found.rules)
                throw std::invalid_argument("the step's rules of sparing do not add up.");
            return data;
        };
        found.lengths = of_rules("lengths");
        found.firsts = of_rules("firsts");
        found.stops = of_rules("stops");
        found.starts = vector<int32_t>(sparing.attr("starts"), found.layers, "starts of layers");
        found.ends = vector<int32_t>(sparing.attr("ends"), count, "ends of layers");
        if (count != found.layers)
            throw std::invalid_argument("the step's layers of sparing do not add up.");
        if (!sparing.attr("told").is_none())
            found.told = shaped<int32_t, 2>(sparing.attr("told"), {found.layers, rows}, "told widths");
        if (sparing.attr("routed").is_none()) return found;
        found.routed = vector<int32_t>(sparing.attr("routed"), count, "routed");
        check(count, rows, "routed");
        const nb::object routers = sparing.attr("routers");
        nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu> weights;
        if (!nb::try_cast(routers.attr("weights"), weights))
            throw std::invalid_argument("the weights of the step's routers are no array of floats.");
        arrays_.emplace_back(weights);
        RoutersView& own = found.routers;
        own.weights = weights.data();
        own.count = static_cast<int64_t>(weights.shape(0));
        own.layers = static_cast<int64_t>(weights.shape(1));
        own.choices = static_cast<int64_t>(weights.shape(2));
        own.hidden = static_cast<int64_t>(weights.shape(3));
        const std::array<int64_t, 3> shape{own.count, own.layers, own.choices};
        own.widths = shaped<int32_t, 3>(routers.attr("widths"), shape, "widths of routers");
        own.biases = shaped<float, 3>(routers.attr("biases"), shape, "biases of routers");
        return found;
    }
    VisitsView visits_of(nb::handle visits, int64_t rows) {
        VisitsView found;
        int64_t count = 0;
        found.query_blocks = vector<int32_t>(visits.attr("query_blocks"), count, "query blocks");
        check(count, rows, "query blocks");
        found.starts = vector<int32_t>(visits.attr("starts"), count, "starts of visits");
        if (count < 1) throw std::invalid_argument("the starts of the step's visits are empty.");
        found.list_count = count - 1;
        found.blocks = vector<int32_t>(visits.attr("blocks"), found.block_count, "visited blocks");
        nb::ndarray<const int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu> lists;
        if (!nb::try_cast(visits.attr("lists"), lists))
            throw std::invalid_argument("the step's lists of visits are no contiguous array.");
        arrays_.emplace_back(lists);
        found.lists = lists.data();
        found.queries = static_cast<int64_t>(lists.shape(0));
        found.layers = static_cast<int64_t>(lists.shape(1));
        found.kv_heads = static_cast<int64_t>(lists.shape(2));
        return found;
    }
    ChoicesView choices_of(nb::handle choices, int64_t rows) {
        ChoicesView found;
        int64_t count = 0, numbers = 0, shares = 0, layers = 0, rules = 0, rule_shares = 0;
        found.rows = vector<int32_t>(choices.attr("rows"), count, "choices");
        check(count, rows, "choices");
        const auto* whole = vector<int64_t>(choices.attr("numbers"), numbers, "numbers of choices");
        const auto* parts = vector<double>(choices.attr("shares"), shares, "shares of choices");
        const auto* which = vector<int32_t>(choices.attr("layers"), layers, "layers of choices");
        const auto* of_heads = vector<int32_t>(choices.attr("rules"), rules, "rules of choices");
        const auto* of_rules =
            vector<double>(choices.attr("rule_shares"), rule_shares, "shares of rules");
        std::vector<bool> ruled;
        for (nb::handle name : choices.attr("choosers")) {
            const auto wanted = nb::cast<std::string>(name);
            const auto i = static_cast<int64_t>(found.of.size());
            ChoicesView::Choice& choice = found.of.emplace_back();
            choice.chooser = find_chooser(wanted);
            ruled.push_back(wanted == by_head);
            if (choice.chooser == nullptr && wanted != together && wanted != by_head)
                throw std::invalid_argument("the core has no chooser " + wanted + ".");
            if (numbers < choice_numbers * (i + 1) || shares < choice_shares * (i + 1)) break;
            const int64_t* own = whole + choice_numbers * i;
            choice.first = own[0];
            choice.until = own[1];
            choice.tokens = own[2];
            choice.sinks = own[3];
            choice.local = own[4];
            choice.stride = own[5];
            choice.among = own[6];
            choice.every = own[7];
            choice.share = parts[choice_shares * i];
            choice.within = parts[choice_shares * i + 1];
            choice.threshold = parts[choice_shares * i + 2];
        }
        const auto of = static_cast<int64_t>(found.of.size());
        if (numbers != choice_numbers * of || shares != choice_shares * of || of == 0 ||
            layers % of != 0 || rules != rule_shares || (rules > 0 && layers == 0) ||
            (rules > 0 && rules % layers != 0))
            throw std::invalid_argument("the step's choices do not add up.");
        found.layer_count = layers / of;
        found.head_count = rules > 0 ? rules / layers : 0;
        for (int64_t i = 0; i < of; ++i) {
            found.of[i].layers = which + i * found.layer_count;
            if (!ruled[i]) continue;
            if (rules == 0) throw std::invalid_argument("the step's choices do not add up.");
            found.of[i].rules = of_heads + i * found.layer_count * found.head_count;
            found.of[i].rule_shares = of_rules + i * found.layer_count * found.head_count;
        }
        return found;
    }
    template <class T, size_t N>
    const T* shaped(nb::handle object, const std::array<int64_t, N>& shape, const char* what) {
        nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu> view;
        bool fits = nb::try_cast(object, view);
        for (size_t i = 0; fits && i < N; ++i)
            fits = static_cast<int64_t>(view.shape(i)) == shape[i];
        if (!fits)
            throw std::invalid_argument(std::string("the step's ") + what +
                                        " are not a contiguous array of their type and shape.");
        arrays_.emplace_back(view);
        return view.data();
    }
    static void check(int64_t length, int64_t rows, const char* what) {
        if (length != rows)
            throw std::invalid_argument(std::string("the step's ") + what + " have " +
                                        std::to_string(length) +
                                        " values; they should have one entry for each of " +
                                        std::to_string(rows) + " rows.");
    }
    template <class T>
    const T* vector(nb::handle object, int64_t& length, const char* what) {
        Vector<T> view;
        if (!nb::try_cast(object, view))
            throw std::invalid_argument(std::string("the step's ") + what +
                                        " are not a contiguous array of their type.");
        arrays_.emplace_back(view);
        length = static_cast<int64_t>(view.size());
        return view.data();
    }
    template <class T>
    const T* array(const char* field, int64_t& length) {
        return vector<T>(step_.attr(field), length, field);
    }
    template <class T>
    const T* per_row(const char* field, int64_t rows) {
        int64_t length = 0;
        const T* data = array<T>(field, length);
        check(length, rows, field);
        return data;
    }
    std::vector<LayerRows> rows_by_layer(const char* field) {
        std::vector<LayerRows> result;
        const nb::dict wanted = step_.attr(field);
        for (auto [layer, rows] : wanted) {
            LayerRows one;
            one.layer = nb::cast<int64_t>(layer);
            one.rows = vector<int32_t>(rows, one.count, field);
            result.push_back(one);
        }
        return result;
    }

    nb::handle step_;
    std::vector<nb::ndarray<nb::ro>>& arrays_;
};

std::unique_ptr<BoundRun> begin(nb::handle self, nb::object step) {
    auto bound = std::make_unique<BoundRun>();
    StepView view = StepReader(step, bound->arrays).read();
    bound->executor = nb::borrow(self);
    bound->run = nb::cast<BoundExecutor&>(self).executor->begin(std::move(view));
    bound->step = std::move(step);
    return bound;
}

nb::object x_of(nb::handle self) {
    const BoundRun& bound = nb::cast<BoundRun&>(self);
    const size_t rows = bound.run->embedded ? static_cast<size_t>(bound.run->step.rows) : 0;
    const size_t shape[] = {rows, static_cast<size_t>(bound.run->hidden)};
    return nb::cast(nb::ndarray<nb::numpy, float>(rows ? bound.run->x() : nullptr, 2, shape, self));
}

void set_x(BoundRun& bound, Table<float> x) {
    const Run& run = *bound.run;
    if (!run.embedded) throw std::invalid_argument("the step has no x before it is embedded.");
    if (static_cast<int64_t>(x.shape(0)) != run.step.rows ||
        static_cast<int64_t>(x.shape(1)) != run.hidden)
        throw std::invalid_argument("x has " + std::to_string(run.step.rows) + " rows of " +
                                    std::to_string(run.hidden) + " values; it must keep its shape.");
    std::memmove(run.x(), x.data(), static_cast<size_t>(x.size()) * sizeof(float));
}

void reposition(BoundExecutor& self, int64_t group, Vector<int64_t> source, Vector<int64_t> target,
                Vector<int32_t> shifts) {
    const Planes& planes = nb::cast<Planes&>(self.planes);
    check_slots(planes, group, source);
    check_slots(planes, group, target);
    if (source.size() != target.size() || source.size() != shifts.size())
        throw std::invalid_argument("each source slot needs a target slot and a shift.");
    nb::gil_scoped_release release;
    self.executor->reposition(group, source.data(), target.data(), shifts.data(),
                              static_cast<int64_t>(source.size()));
}

// Layer -> of each row (sums, keys), or (keys,) of the sums over all heads.
nb::dict scores_of(const std::vector<LayerScores>& found, bool summed) {
    nb::dict scores;
    for (const LayerScores& layer : found) {
        nb::list arrays;
        for (const std::vector<float>& row : layer.rows) {
            const auto values = static_cast<int64_t>(row.size());
            Floats one{std::make_unique<Buffer>(), layer.sums, values / layer.sums};
            std::copy(row.begin(), row.end(), one.memory->take<float>(values));
            nb::object array = array_of(std::move(one));
            arrays.append(summed ? array.attr("ravel")() : array);
        }
        scores[nb::int_(layer.layer)] = arrays;
    }
    return scores;
}

// Layer -> of each set of rows (sums, keys).
nb::dict totals_of(std::vector<LayerTotals>& found) {
    nb::dict totals;
    for (LayerTotals& layer : found) {
        nb::list arrays;
        for (std::vector<double>& set : layer.sets) {
            auto* values = new std::vector<double>(std::move(set));
            nb::capsule owner(values,
                              [](void* p) noexcept { delete static_cast<std::vector<double>*>(p); });
            const size_t shape[] = {static_cast<size_t>(layer.sums),
                                    values->size() / static_cast<size_t>(layer.sums)};
            arrays.append(nb::ndarray<nb::numpy, double>(values->data(), 2, shape, owner));
        }
        totals[nb::int_(layer.layer)] = arrays;
    }
    return totals;
}

// Group -> (3, rows): what LeftOut has.
nb::dict left_out_of(const Run& run) {
    nb::dict found;
    for (size_t group = 0; group < run.left_out.size(); ++group) {
        const LeftOut& of = run.left_out[group];
        if (of.keys.empty()) continue;
        auto* all = new std::vector<int64_t>(of.keys);
        all->insert(all->end(), of.bytes.begin(), of.bytes.end());
        all->insert(all->end(), of.read.begin(), of.read.end());
        nb::capsule owner(all, [](void* p) noexcept { delete static_cast<std::vector<int64_t>*>(p); });
        found[nb::int_(group)] =
            nb::ndarray<nb::numpy, int64_t, nb::ndim<2>>(all->data(), {3, of.keys.size()}, owner);
    }
    return found;
}

// (layers, rows): neurons that a row ran, 0 for all, -1 for none. (0, 0) where nothing is decided.
nb::object spared_of(Run& run) {
    auto* all = new std::vector<int32_t>(std::move(run.spared.ran));
    nb::capsule owner(all, [](void* p) noexcept { delete static_cast<std::vector<int32_t>*>(p); });
    const auto rows = static_cast<size_t>(all->empty() ? 0 : run.step.rows);
    const size_t shape[] = {rows == 0 ? 0 : all->size() / rows, rows};
    return nb::cast(nb::ndarray<nb::numpy, int32_t>(all->data(), 2, shape, owner));
}

// (passes, rows): whether a row took a pass. (0, 0) of a program without any.
nb::object deep_of(const Run& run) {
    const size_t passes = run.passes.taken.size();
    const auto rows = static_cast<size_t>(passes == 0 ? 0 : run.step.rows);
    auto* all = new std::vector<int32_t>(passes * rows, 0);
    for (size_t pass = 0; pass < passes; ++pass)
        for (int32_t row : run.passes.taken[pass].rows)
            (*all)[pass * rows + static_cast<size_t>(row)] = 1;
    nb::capsule owner(all, [](void* p) noexcept { delete static_cast<std::vector<int32_t>*>(p); });
    const size_t shape[] = {passes, rows};
    return nb::cast(nb::ndarray<nb::numpy, int32_t>(all->data(), 2, shape, owner));
}

nb::tuple finish(BoundExecutor& self, BoundRun& bound) {
    Run& run = *bound.run;
    nb::dict hidden;
    for (auto& [layer, floats] : run.hidden_states)
        hidden[nb::int_(layer)] = array_of(std::move(floats));
    nb::dict queries;
    for (auto& [layer, floats] : run.queries) queries[nb::int_(layer)] = array_of(std::move(floats));
    nb::dict recall;
    for (auto& [layer, floats] : run.recall) recall[nb::int_(layer)] = array_of(std::move(floats));
    if (!run.logits.memory) run.logits.columns = self.executor->vocabulary();
    const auto count = static_cast<int64_t>(run.argmax.size());
    Floats largest{std::make_unique<Buffer>(), 1, count};
    float* values = largest.memory->take<float>(count);
    nb::list argmax;
    for (const Peak& peak : run.argmax) {
        *values++ = peak.value;
        argmax.append(peak.token);
    }
    const auto head_rows = static_cast<size_t>(run.logits.rows + count);
    auto* tokens = new std::vector<int32_t>(std::move(run.candidates));
    nb::capsule owner(tokens, [](void* p) noexcept { delete static_cast<std::vector<int32_t>*>(p); });
    const size_t wanted = tokens->empty() ? 0 : tokens->size() / head_rows;
    const nb::ndarray<nb::numpy, int32_t, nb::ndim<2>> candidates(tokens->data(), {head_rows, wanted},
                                                                   owner);
    return nb::make_tuple(array_of(std::move(run.logits)), hidden, scores_of(run.scores, false),
                          argmax, array_of(std::move(largest)).attr("ravel")(), candidates,
                          scores_of(run.score_sums, true), recall, totals_of(run.score_totals),
                          left_out_of(run), queries, spared_of(run), deep_of(run));
}

}  // namespace

void bind_steps(nb::module_& module) {
    nb::class_<BoundRun>(module, "Run")
        .def_ro("step", &BoundRun::step)
        .def_prop_rw("x", &x_of, &set_x);
    nb::class_<BoundExecutor>(module, "Executor")
        .def_static("bind", &make_executor, "pool"_a, "isa"_a, "planes"_a, "program"_a,
                    "matrix_of"_a)
        .def("begin", &begin, "step"_a)
        .def(
            "run",
            [](BoundExecutor& self, BoundRun& run, int64_t start, int64_t stop) {
                nb::gil_scoped_release release;
                self.executor->run(*run.run, start, stop);
            },
            "run"_a, "start"_a, "stop"_a)
        .def("finish", &finish, "run"_a)
        .def("reposition", &reposition, "group"_a, "source"_a, "target"_a, "shifts"_a);
}

}  // namespace ockham
