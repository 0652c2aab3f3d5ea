#include "text/string_list.h"

namespace ockham {

bool is_utf8(std::string_view bytes) {
    const auto* at = reinterpret_cast<const uint8_t*>(bytes.data());
    const uint8_t* end = at + bytes.size();
    while (at < end) {
        const uint8_t first = *at++;
        if (first < 0x80) continue;
        // How many bytes follow, and between what the first of them may be.
        int more;
        uint8_t least = 0x80, most = 0xBF;
        if (first >= 0xC2 && first <= 0xDF) {
            more = 1;
        } else if (first >= 0xE0 && first <= 0xEF) {
            more = 2;
            if (first == 0xE0) least = 0xA0;
            if (first == 0xED) most = 0x9F;
        } else if (first >= 0xF0 && first <= 0xF4) {
            more = 3;
            if (first == 0xF0) least = 0x90;
            if (first == 0xF4) most = 0x8F;
        } else {
            return false;
        }
        for (; more > 0; --more, ++at, least = 0x80, most = 0xBF)
            if (at == end || *at < least || *at > most) return false;
    }
    return true;
}

}  // namespace ockham
