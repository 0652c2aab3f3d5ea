#include "program.h"

#include <utility>

#include "ops/checks.h"
#include "ops/embed.h"

namespace ockham {

Program::Program(const Planes& planes, Operations operations)
    : planes(planes), operations_(std::move(operations)) {
    require(!operations_.empty() &&
                dynamic_cast<const ops::Embed*>(operations_.front().get()) != nullptr,
            "a program begins with the embedding.");
    for (; checked_ < operations_.size(); ++checked_) operations_[checked_]->check(*this);
}

}  // namespace ockham
