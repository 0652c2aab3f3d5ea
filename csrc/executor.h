// Runs ranges of a program over one step without returning to Python.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "isa/isa.h"
#include "program.h"
#include "run.h"
#include "step.h"

namespace ockham {

class Planes;
class ThreadPool;

class Executor {
   public:
    // `pool` and `planes` outlive the executor. Throws std::invalid_argument with a sentence where
    // the operations contradict themselves or the planes.
    Executor(ThreadPool& pool, Isa isa, const Planes& planes, Program::Operations operations);

    int64_t size() const { return program_.size(); }
    int64_t hidden() const { return program_.hidden; }
    // Columns of the logits: the head's outputs, where there is a head.
    int64_t vocabulary() const { return program_.logits; }

    // Throws std::invalid_argument with a sentence if the step breaks its contract in a way that
    // would make a kernel read or write outside of its memory.
    std::unique_ptr<Run> begin(StepView step);

    // Runs operations [start, stop). One thread at a time; others wait.
    void run(Run& run, int64_t start, int64_t stop);

    // Copies the state of slots `source` of a group to its slots `target`, in all layers, the keys
    // rotated on by `shifts[i]` positions. The caller checks that the slots exist; sources and targets
    // must not overlap.
    void reposition(int64_t group, const int64_t* source, const int64_t* target,
                    const int32_t* shifts, int64_t count);

    const Program& program() const { return program_; }

    // Takes back the memory of a run that is over.
    void recycle(std::unique_ptr<Activations> activations);

   private:
    ThreadPool& pool_;
    const Isa isa_;
    const Program program_;
    std::mutex mutex_;
    std::mutex spare_mutex_;
    std::vector<std::unique_ptr<Activations>> spare_;
};

}  // namespace ockham
