#include "choosers/chooser.h"

#include <iterator>
#include <map>
#include <stdexcept>

namespace ockham {

namespace {

// Made by whoever needs it first, since the rows are added before main(), in no certain order.
std::map<std::string, const Chooser*>& table() {
    static std::map<std::string, const Chooser*> choosers;
    return choosers;
}

}  // namespace

AddedChooser::AddedChooser(const Chooser& chooser) {
    if (!table().emplace(chooser.name, &chooser).second)
        throw std::logic_error(std::string("the chooser ") + chooser.name + " is added twice.");
    if (table().size() > most_choosers) throw std::logic_error("there are too many choosers.");
}

const Chooser* find_chooser(const std::string& name) {
    const auto found = table().find(name);
    return found == table().end() ? nullptr : found->second;
}

int number_of(const Chooser& chooser) {
    return static_cast<int>(std::distance(table().begin(), table().find(chooser.name)));
}

}  // namespace ockham
