// Many strings as they stand in the header of a GGUF file, which are not made objects of Python one
// by one: a vocabulary with its merges is 300,000 of them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ockham {

class StringList {
   public:
    size_t size() const { return ends_.size(); }
    std::string_view at(size_t index) const {
        const size_t start = index == 0 ? 0 : ends_[index - 1];
        return {bytes_.data() + start, ends_[index] - start};
    }
    void append(std::string_view text) {
        bytes_.append(text);
        ends_.push_back(bytes_.size());
    }
    bool operator==(const StringList& other) const {
        return bytes_ == other.bytes_ && ends_ == other.ends_;
    }

   private:
    std::string bytes_;         // of all, one after another
    std::vector<size_t> ends_;  // where each ends
};

// Whether bytes are UTF-8 (RFC 3629): no surrogates, nothing longer than it need be.
bool is_utf8(std::string_view bytes);

}  // namespace ockham
