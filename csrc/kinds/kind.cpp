#include "kinds/kind.h"

#include <map>
#include <stdexcept>

namespace ockham {

namespace {

// Made by whoever needs it first, since the rows are added before main(), in no certain order.
std::map<std::string, const LinearKind*>& table() {
    static std::map<std::string, const LinearKind*> kinds;
    return kinds;
}

size_t item_bytes(const std::string& dtype) {
    return dtype == "uint8" ? 1 : dtype == "float32" ? 4 : 2;  // float16, bfloat16
}

}  // namespace

size_t PackedArray::bytes() const {
    size_t total = item_bytes(dtype);
    for (const int64_t size : shape) total *= static_cast<size_t>(size);
    return total;
}

AddedKind::AddedKind(const LinearKind& kind) {
    for (TileFunction* tile : kind.tile)
        if (tile == nullptr)
            throw std::logic_error(std::string("the kind ") + kind.name +
                                   " has no kernel for one of the instruction sets.");
    if (!table().emplace(kind.name, &kind).second)
        throw std::logic_error(std::string("the kind ") + kind.name + " is added twice.");
}

const LinearKind* find_kind(const std::string& name) {
    const auto found = table().find(name);
    return found == table().end() ? nullptr : found->second;
}

std::vector<std::string> kind_names() {
    std::vector<std::string> names;
    for (const auto& row : table()) names.push_back(row.first);
    return names;
}

PackedMatrix matrix_of(const std::string& name, int64_t outputs, int64_t inputs, int64_t group,
                       bool zeros) {
    PackedMatrix matrix;
    matrix.kind = find_kind(name);
    if (matrix.kind == nullptr)
        throw std::invalid_argument("there are no kernels for matrices of the kind " + name + ".");
    if (outputs < 1 || inputs < 1) throw std::invalid_argument("a packed matrix is never empty.");
    matrix.outputs = outputs;
    matrix.inputs = inputs;
    matrix.group = group;
    matrix.kind->check(matrix, zeros);
    for (const PackedArray& array : matrix.kind->arrays(matrix, zeros)) {
        const std::string which = array.name;
        (which == "weight"  ? matrix.weight_bytes
         : which == "scale" ? matrix.scale_bytes
                            : matrix.zero_bytes) = array.bytes();
    }
    return matrix;
}

}  // namespace ockham
