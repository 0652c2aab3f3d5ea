// What every operation of a program is: a record that is read once, checked once and run over each
// step.
//
// An operation is a pair of files, NAME.h and NAME.cpp: the record, with the fields and the meaning of
// its class in ockham/kernels/ops/NAME.py, and what is done with it. A static `Added` in NAME.cpp puts it into
// the table that programs are read by; no other file names it.
//
// Operations know tensors and rows, never models. A row's activations are a function of that row, of
// the state that it sees and of the weights: rows are computed apart, or together by kernels that keep
// them apart.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace ockham {

class Program;
struct Run;

namespace ops {

class Fields;

class Operation {
   public:
    virtual ~Operation() = default;
    // Throws std::invalid_argument with a sentence where the operation contradicts itself, the planes
    // or the operations before it; tells the program what those after it need to know.
    virtual void check(Program& program) const = 0;
    // Over the active rows of the step, `run.active`.
    virtual void run(Run& run) const = 0;
    // How many neurons it has of which a step may want the first ones only.
    virtual int64_t neurons() const { return 0; }
};

using Read = std::shared_ptr<const Operation> (*)(const Fields& fields);

// `Op` has a constructor that reads Fields.
template <class Op>
std::shared_ptr<const Operation> read(const Fields& fields) {
    return std::make_shared<const Op>(fields);
}

// A row of the table: how the class `name` of ockham.kernels.ops is read.
struct Added {
    Added(const char* name, Read read);
};

// Throws std::invalid_argument with a sentence for a class that is not in the table.
std::shared_ptr<const Operation> read_operation(const std::string& name, const Fields& fields);

}  // namespace ops

}  // namespace ockham
