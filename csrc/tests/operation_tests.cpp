// An operation is one file: this one adds its own to the table, reads it by name and runs it.
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "executor.h"
#include "kernels/threads.h"
#include "ops/checks.h"
#include "ops/embed.h"
#include "ops/fields.h"
#include "ops/operation.h"
#include "state/planes.h"
#include "tests/tests.h"

namespace ockham::tests {

namespace {

// x = x * factor.
struct Multiply final : ops::Operation {
    float factor;

    explicit Multiply(const ops::Fields& fields) : factor(fields.number("factor")) {}
    void check(Program&) const override { require(factor != 0.0f, "a factor is 0."); }
    void run(Run& run) const override {
        run.kernels.multiply(run.x(), factor, run.step.rows * run.hidden);
    }
};

const ops::Added added{"Multiply", ops::read<Multiply>};

// A record with one number.
class OneNumber final : public ops::Fields {
   public:
    explicit OneNumber(float value) : value_(value) {}
    bool none(const char*) const override { return false; }
    bool flag(const char*) const override { return false; }
    int64_t integer(const char*) const override { return 0; }
    float number(const char*) const override { return value_; }
    std::string text(const char*) const override { return {}; }
    std::vector<float> floats(const char*) const override { return {}; }
    std::unique_ptr<Fields> record(const char*) const override { return nullptr; }
    PackedMatrix matrix(const char*) const override { return {}; }
    std::vector<PackedMatrix> matrices(const char*) const override { return {}; }
    ops::Stack stack(const char*) const override { return {}; }

   private:
    float value_;
};

template <class F>
bool refused(F call) {
    try {
        call();
    } catch (const std::invalid_argument&) {
        return true;
    }
    return false;
}

void an_operation_of_its_own() {
    Buffer memory;
    PackedMatrix table = matrix_of("fp32", 3, 16);
    const int64_t count = static_cast<int64_t>(table.weight_bytes / sizeof(float));
    float* weight = memory.take<float>(count);
    for (int64_t i = 0; i < count; ++i) weight[i] = static_cast<float>(i % 7);
    table.weight = weight;
    auto embed = std::make_shared<ops::Embed>();
    embed->table = table;

    ThreadPool pool(1);
    Planes planes({GroupShape{{0}, 1, 8, Element::fp32, Element::fp32, 2, 16}});
    const auto program = [&](float factor) {
        return Program::Operations{embed, ops::read_operation("Multiply", OneNumber(factor))};
    };
    check(refused([&] { Executor(pool, Isa::portable, planes, program(0.0f)); }),
          "an operation's own check is asked");
    check(refused([] { ops::read_operation("Divide", OneNumber(1.0f)); }),
          "an operation that is in no table is refused");

    Executor executor(pool, Isa::portable, planes, program(2.0f));
    const std::vector<int32_t> ids = {2}, zeros = {0}, context = {1}, starts = {0, 1};
    const std::vector<int64_t> slots = {0};
    StepView step;
    step.rows = step.sequences = 1;
    step.ids = ids.data();
    step.positions = step.sequence = zeros.data();
    GroupRowsView group;
    group.table = {zeros.data(), starts.data(), 1};
    group.slots = slots.data();
    group.context = context.data();
    step.groups = {group};
    step.page_tokens = 16;
    const std::unique_ptr<Run> run = executor.begin(step);
    executor.run(*run, 0, executor.size());
    std::vector<float> row(16);
    unpack_row(table, 2, row.data());
    for (int64_t i = 0; i < 16; ++i)
        check(run->x()[i] == 2.0f * row[i], "an added operation runs in its place");
}

const Added first{"an operation is one file", an_operation_of_its_own};

}  // namespace

}  // namespace ockham::tests
