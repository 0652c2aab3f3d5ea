#include "ops/operation.h"

#include <map>
#include <stdexcept>

namespace ockham::ops {

namespace {

// Made by whoever needs it first, since the rows are added before main(), in no certain order.
std::map<std::string, Read>& table() {
    static std::map<std::string, Read> rows;
    return rows;
}

}  // namespace

Added::Added(const char* name, Read read) {
    if (!table().emplace(name, read).second)
        throw std::logic_error(std::string("the operation ") + name + " is added twice.");
}

std::shared_ptr<const Operation> read_operation(const std::string& name, const Fields& fields) {
    const auto found = table().find(name);
    if (found == table().end())
        throw std::invalid_argument("the cpu backend does not know the operation " + name + ".");
    return found->second(fields);
}

}  // namespace ockham::ops
