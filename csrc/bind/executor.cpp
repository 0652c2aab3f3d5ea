#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind/bindings.h"
#include "bind/matrix.h"
#include "executor.h"
#include "kernels/threads.h"
#include "ops/fields.h"
#include "ops/operation.h"
#include "state/planes.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ockham {

namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Table = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Memory that Python owns from now on.
nb::object array_of(Floats floats) {
    const size_t shape[] = {static_cast<size_t>(floats.rows), static_cast<size_t>(floats.columns)};
    float* data = floats.memory ? floats.memory->get<float>() : nullptr;
    nb::capsule owner(floats.memory.release(),
                      [](void* memory) noexcept { delete static_cast<Buffer*>(memory); });
    return nb::cast(nb::ndarray<nb::numpy, float>(data, 2, shape, owner));
}

// -- planes ------------------------------------------------------------------------------------

std::vector<int64_t> layers_of(nb::handle layers) {
    std::vector<int64_t> result;
    for (nb::handle layer : layers) result.push_back(nb::cast<int64_t>(layer));
    return result;
}

std::unique_ptr<Planes> make_planes(nb::sequence groups) {
    std::vector<GroupShape> shapes;
    for (nb::handle group : groups) {
        const auto dtype = nb::cast<std::string>(group.attr("dtype"));
        if (dtype != "bfloat16" && dtype != "float32")
            throw std::invalid_argument("keys and values cannot be stored as " + dtype + ".");
        shapes.push_back({layers_of(group.attr("layers")), nb::cast<int64_t>(group.attr("kv_heads")),
                          nb::cast<int64_t>(group.attr("head_dim")), dtype == "bfloat16",
                          nb::cast<int64_t>(group.attr("pages")),
                          nb::cast<int64_t>(group.attr("page_tokens"))});
    }
    return std::make_unique<Planes>(shapes);
}

void check_slots(const Planes& planes, int64_t group, const Vector<int64_t>& slots) {
    if (group < 0 || group >= static_cast<int64_t>(planes.groups().size()))
        throw std::invalid_argument("there is no group " + std::to_string(group) + " of layers.");
    for (size_t i = 0; i < slots.size(); ++i)
        if (slots.data()[i] < 0 || slots.data()[i] >= planes.slots(group))
            throw std::invalid_argument("slot " + std::to_string(slots.data()[i]) +
                                        " is not one of the " +
                                        std::to_string(planes.slots(group)) + " of its group.");
}

void copy_state(Planes& planes, int64_t group, Vector<int64_t> source, Vector<int64_t> target) {
    check_slots(planes, group, source);
    check_slots(planes, group, target);
    if (source.size() != target.size())
        throw std::invalid_argument("there are not as many source slots as target slots.");
    planes.copy(group, source.data(), target.data(), static_cast<int64_t>(source.size()));
}

nb::object read_state(const Planes& planes, int64_t group, Vector<int64_t> slots) {
    check_slots(planes, group, slots);
    const GroupShape& shape = planes.groups()[group];
    const size_t sizes[] = {shape.layers.size(), 2, slots.size(),
                            static_cast<size_t>(shape.kv_heads),
                            static_cast<size_t>(shape.head_dim)};
    const size_t bytes = sizes[0] * sizes[1] * sizes[2] * sizes[3] * sizes[4] * (shape.bf16 ? 2 : 4);
    auto memory = std::make_unique<Buffer>();
    memory->take<uint8_t>(static_cast<int64_t>(bytes));
    planes.read(group, slots.data(), static_cast<int64_t>(slots.size()), memory->get<void>());
    void* data = memory->get<void>();
    nb::capsule owner(memory.release(),
                      [](void* owned) noexcept { delete static_cast<Buffer*>(owned); });
    const nb::dlpack::dtype dtype = shape.bf16 ? nb::dtype<uint16_t>() : nb::dtype<float>();
    return nb::cast(nb::ndarray<nb::numpy>(data, 5, sizes, owner, nullptr, dtype));
}

void write_state(Planes& planes, int64_t group, Vector<int64_t> slots,
                 nb::ndarray<nb::ro, nb::ndim<5>, nb::c_contig, nb::device::cpu> state) {
    check_slots(planes, group, slots);
    const GroupShape& shape = planes.groups()[group];
    const bool fits = state.shape(0) == shape.layers.size() && state.shape(1) == 2 &&
                      state.shape(2) == slots.size() &&
                      state.shape(3) == static_cast<size_t>(shape.kv_heads) &&
                      state.shape(4) == static_cast<size_t>(shape.head_dim) &&
                      state.itemsize() == (shape.bf16 ? 2u : 4u);
    if (!fits)
        throw std::invalid_argument("the state has another shape or type than the group's planes.");
    planes.write(group, slots.data(), static_cast<int64_t>(slots.size()), state.data());
}

// Pages of a group, and where in each row of `data` one stands.
template <class Bytes>
void check_pages(const Planes& planes, int64_t group, const Vector<int64_t>& pages,
                 const Bytes& data, int64_t at) {
    if (group < 0 || group >= static_cast<int64_t>(planes.groups().size()))
        throw std::invalid_argument("there is no group " + std::to_string(group) + " of layers.");
    for (size_t i = 0; i < pages.size(); ++i)
        if (pages.data()[i] < 0 || pages.data()[i] >= planes.groups()[group].pages)
            throw std::invalid_argument("there is no page " + std::to_string(pages.data()[i]) +
                                        " in its group.");
    if (data.shape(0) != pages.size() || at < 0 ||
        at + planes.stored_page_bytes(group) > static_cast<int64_t>(data.shape(1)))
        throw std::invalid_argument("the rows have no room for the pages.");
}

void read_pages(const Planes& planes, int64_t group, Vector<int64_t> pages,
                nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> data, int64_t at) {
    check_pages(planes, group, pages, data, at);
    nb::gil_scoped_release release;
    planes.read_pages(group, pages.data(), static_cast<int64_t>(pages.size()), data.data() + at,
                      static_cast<int64_t>(data.shape(1)));
}

void write_pages(Planes& planes, int64_t group, Vector<int64_t> pages,
                 nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> data,
                 int64_t at) {
    check_pages(planes, group, pages, data, at);
    nb::gil_scoped_release release;
    planes.write_pages(group, pages.data(), static_cast<int64_t>(pages.size()), data.data() + at,
                       static_cast<int64_t>(data.shape(1)));
}

void back_pages(const Planes& planes, int64_t group, int64_t index, int64_t pages) {
    if (group < 0 || group >= static_cast<int64_t>(planes.groups().size()) || index < 0 ||
        index >= static_cast<int64_t>(planes.groups()[group].layers.size()) || pages < 0 ||
        pages > planes.groups()[group].pages)
        throw std::invalid_argument("there are no such pages to back.");
    nb::gil_scoped_release release;
    planes.back(group, index, pages);
}

// -- programs ----------------------------------------------------------------------------------

// The fields of an operation of ockham.kernels.ops, or of a record that it holds.
class PythonFields final : public ops::Fields {
   public:
    // `matrix_of` gives the native matrices of a linear; `owners` keeps them, and so their memory, alive.
    PythonFields(nb::object record, const nb::callable& matrix_of, std::vector<nb::object>& owners)
        : record_(std::move(record)), matrix_of_(matrix_of), owners_(owners) {}

    bool none(const char* field) const override { return record_.attr(field).is_none(); }
    bool flag(const char* field) const override { return nb::cast<bool>(record_.attr(field)); }
    int64_t integer(const char* field) const override {
        return nb::cast<int64_t>(record_.attr(field));
    }
    float number(const char* field) const override { return nb::cast<float>(record_.attr(field)); }
    std::string text(const char* field) const override {
        return nb::cast<std::string>(record_.attr(field));
    }
    std::vector<float> floats(const char* field) const override {
        if (none(field)) return {};
        const auto view = nb::cast<Vector<float>>(record_.attr(field));
        return std::vector<float>(view.data(), view.data() + view.size());
    }
    std::unique_ptr<ops::Fields> record(const char* field) const override {
        return std::make_unique<PythonFields>(record_.attr(field), matrix_of_, owners_);
    }

    PackedMatrix matrix(const char* field) const override { return packed(record_.attr(field)); }
    std::vector<PackedMatrix> matrices(const char* field) const override {
        std::vector<PackedMatrix> result;
        for (nb::handle linear : record_.attr(field)) result.push_back(packed(linear));
        return result;
    }
    ops::Stack stack(const char* field) const override {
        ops::Stack result;
        const auto parts = nb::cast<nb::list>(matrix_of_(record_.attr(field)));
        for (nb::handle part : parts) result.parts.push_back(owned(part));
        return result;
    }

   private:
    PackedMatrix packed(nb::handle linear) const {
        if (linear.is_none()) return {};
        const auto parts = nb::cast<nb::list>(matrix_of_(linear));
        if (nb::len(parts) != 1)
            throw std::invalid_argument(
                "the rows of a matrix stand in several formats, which is only supported for "
                "projections of attention and dense feed-forward layers; choose a --quantization.");
        return owned(parts[0]);
    }
    PackedMatrix owned(nb::handle matrix) const {
        owners_.push_back(nb::borrow(matrix));
        return nb::cast<const Matrix&>(matrix).packed;
    }

    nb::object record_;
    const nb::callable& matrix_of_;
    std::vector<nb::object>& owners_;
};

// An executor with what it only points to.
struct BoundExecutor {
    nb::object pool, planes;
    std::vector<nb::object> matrices;
    std::unique_ptr<Executor> executor;
};

std::unique_ptr<BoundExecutor> make_executor(nb::object pool, Isa isa, nb::object planes,
                                             nb::sequence program, nb::callable matrix_of) {
    require(isa);
    auto bound = std::make_unique<BoundExecutor>();
    Program::Operations operations;
    for (nb::handle op : program) {
        const auto name = nb::cast<std::string>(nb::handle(op.type()).attr("__name__"));
        const PythonFields fields(nb::borrow(op), matrix_of, bound->matrices);
        operations.push_back(ops::read_operation(name, fields));
    }
    bound->executor = std::make_unique<Executor>(nb::cast<ThreadPool&>(pool), isa,
                                                 nb::cast<Planes&>(planes), std::move(operations));
    bound->pool = std::move(pool);
    bound->planes = std::move(planes);
    return bound;
}

// -- steps -------------------------------------------------------------------------------------

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

class StepReader {
   public:
    StepReader(nb::handle step, std::vector<nb::ndarray<nb::ro>>& arrays)
        : step_(step), arrays_(arrays) {}

    StepView read() {
        StepView view;
        view.ids = array<int32_t>("ids", view.rows);
        view.positions = per_row<int32_t>("positions", view.rows);
        view.sequence = per_row<int32_t>("sequence", view.rows);
        view.context = per_row<int32_t>("context", view.rows);
        view.page_tokens = nb::cast<int64_t>(step_.attr("page_tokens"));
        for (nb::handle tables : step_.attr("tables")) {
            TableView table;
            int64_t starts = 0;
            table.pages = vector<int32_t>(tables.attr("pages"), table.length, "pages");
            table.starts = vector<int32_t>(tables.attr("starts"), starts, "starts");
            if (!view.tables.empty() && starts - 1 != view.sequences)
                throw std::invalid_argument("the step's page tables are of other sequences.");
            view.sequences = starts - 1;
            view.tables.push_back(table);
        }
        for (nb::handle slots : step_.attr("slots")) {
            int64_t rows = 0;
            view.slots.push_back(vector<int64_t>(slots, rows, "slots"));
            check(rows, view.rows, "slots");
        }
        view.wants_logits = array<int32_t>("wants_logits", view.logits_rows);
        view.wants_argmax = array<int32_t>("wants_argmax", view.argmax_rows);
        view.candidates = nb::cast<int64_t>(step_.attr("candidates"));
        if (view.candidates < 0) throw std::invalid_argument("candidates are at least 0.");
        if (!step_.attr("extra").is_none()) {
            view.extra = array<int32_t>("extra", view.extra_count);
            int64_t starts = 0;
            view.extra_starts = array<int32_t>("extra_starts", starts);
            check(starts - 1, view.rows, "extra_starts, not counting the first,");
        }
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
        return view;
    }

   private:
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

nb::tuple finish(BoundExecutor& self, BoundRun& bound) {
    Run& run = *bound.run;
    nb::dict hidden, scores;
    for (auto& [layer, floats] : run.hidden_states)
        hidden[nb::int_(layer)] = array_of(std::move(floats));
    for (auto& [layer, rows] : run.scores) {
        nb::list arrays;
        for (std::vector<float>& row : rows) {
            Floats one{std::make_unique<Buffer>(), 1, static_cast<int64_t>(row.size())};
            std::copy(row.begin(), row.end(), one.memory->take<float>(one.columns));
            arrays.append(array_of(std::move(one)).attr("ravel")());
        }
        scores[nb::int_(layer)] = arrays;
    }
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
    return nb::make_tuple(array_of(std::move(run.logits)), hidden, scores, argmax,
                          array_of(std::move(largest)).attr("ravel")(), candidates);
}

}  // namespace

void bind_executor(nb::module_& module) {
    nb::class_<Planes>(module, "Planes")
        .def("__init__",
             [](Planes* self, nb::sequence groups) { new (self) Planes(std::move(*make_planes(groups))); },
             "groups"_a)
        .def("copy", &copy_state, "group"_a, "source"_a, "target"_a)
        .def("read", &read_state, "group"_a, "slots"_a)
        .def("write", &write_state, "group"_a, "slots"_a, "state"_a)
        .def("stored_page_bytes", &Planes::stored_page_bytes, "group"_a)
        .def("read_pages", &read_pages, "group"_a, "pages"_a, "data"_a, "at"_a)
        .def("back", &back_pages, "group"_a, "index"_a, "pages"_a)
        .def("write_pages", &write_pages, "group"_a, "pages"_a, "data"_a, "at"_a);
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
    module.def(
        "row_function",
        [](Isa isa, const std::string& name, Vector<float> x) {
            require(isa);
            const RowKernels& kernels = row_kernels(isa);
            Floats y{std::make_unique<Buffer>(), 1, static_cast<int64_t>(x.size())};
            float* to = y.memory->take<float>(y.columns);
            if (name == "exp")
                kernels.exponential(x.data(), y.columns, to);
            else if (name == "tanh")
                kernels.hyperbolic_tangent(x.data(), y.columns, to);
            else
                throw std::invalid_argument("there is no function " + name + ".");
            return array_of(std::move(y)).attr("ravel")();
        },
        "isa"_a, "name"_a, "x"_a, "exp or tanh of every value, as the kernels compute it.");
}

}  // namespace ockham
