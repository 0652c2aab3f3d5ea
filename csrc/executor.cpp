#include "executor.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "adapter.h"
#include "kernels/threads.h"
#include "state/planes.h"
#include "state/reposition.h"

namespace ockham {

Executor::Executor(ThreadPool& pool, Isa isa, const Planes& planes,
                   Program::Operations operations)
    : pool_(pool), isa_(isa), program_(planes, std::move(operations)) {}

std::unique_ptr<Run> Executor::begin(StepView step) {
    check_step(step, program_.planes, program_.hidden, program_.vocabulary, program_.positions);
    for (const Adapter* adapter : step.adapters)
        if (adapter != nullptr && !adapter->fits(program_))
            throw std::invalid_argument("an adapter of the step does not fit the program.");
    for (const LeadingNeurons& leading : step.leading) {
        const int64_t there = leading.operation < 0 || leading.operation >= size()
                                  ? 0
                                  : program_[leading.operation].neurons();
        if (leading.count < 1 || leading.count > there)
            throw std::invalid_argument("operation " + std::to_string(leading.operation) + " has " +
                                        std::to_string(there) + " neurons, and the step wants the first " +
                                        std::to_string(leading.count) + " of them.");
    }
    auto run = std::make_unique<Run>(pool_, isa_, program_, std::move(step));
    {
        std::lock_guard<std::mutex> lock(spare_mutex_);
        if (!spare_.empty()) {
            run->activations = std::move(spare_.back());
            spare_.pop_back();
        }
    }
    if (!run->activations) run->activations = std::make_unique<Activations>(pool_.size());
    return run;
}

void Executor::recycle(std::unique_ptr<Activations> activations) {
    std::lock_guard<std::mutex> lock(spare_mutex_);
    if (spare_.size() < 2) spare_.push_back(std::move(activations));
}

namespace {

RowSet active_rows(const StepView& step, int64_t operation) {
    for (const ActiveRows& active : step.active)
        if (active.start <= operation && operation < active.stop) return active.rows;
    return {step.rows, nullptr};
}

int64_t leading_neurons(const StepView& step, int64_t operation) {
    for (const LeadingNeurons& leading : step.leading)
        if (leading.operation == operation) return leading.count;
    return 0;
}

}  // namespace

void Executor::run(Run& run, int64_t start, int64_t stop) {
    if (start < 0 || start > stop || stop > size())
        throw std::invalid_argument("operations [" + std::to_string(start) + ", " +
                                    std::to_string(stop) + ") are not in a program of " +
                                    std::to_string(size()) + ".");
    if (run.step.rows == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    for (int64_t i = start; i < stop; ++i) {
        if (!run.embedded && i != 0)
            throw std::invalid_argument("a step must be embedded before anything else is run.");
        run.active = i < run.passes.stop ? run.passes.rows() : active_rows(run.step, i);
        run.leading = leading_neurons(run.step, i);
        if (const auto* groups = run.spared.before(run, i))
            for (const Spared::Group& group : *groups) {
                run.active = {static_cast<int64_t>(group.rows.size()), group.rows.data()};
                if (group.neurons > 0) run.leading = group.neurons;
                run.unfinished = &group != &groups->back();
                program_[i].run(run);
                run.leading = leading_neurons(run.step, i);
            }
        else
            program_[i].run(run);
        run.spared.after(run, i);
    }
}

void Executor::reposition(int64_t group, const int64_t* source, const int64_t* target,
                          const int32_t* shifts, int64_t count) {
    std::lock_guard<std::mutex> lock(mutex_);
    ockham::reposition(pool_, row_kernels(isa_), program_.planes, program_.ropes, group, source,
                       target, shifts, count);
}

}  // namespace ockham
