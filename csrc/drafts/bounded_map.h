// A hash map of bounded size: when it is full, an entry leaves that was not used for long, where each
// use saves an entry once, up to three times (a clock). The native form of
// ockham/draft/structures/bounded_map.py, decision for decision.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ockham {

// What a drafter knows something of: one or two tokens of a tenant.
struct TokenKey {
    int32_t tenant, first, second;
    bool operator==(const TokenKey& other) const {
        return tenant == other.tenant && first == other.first && second == other.second;
    }
};

template <class Value>
class BoundedMap {
   public:
    explicit BoundedMap(int64_t capacity) : capacity_(static_cast<size_t>(capacity)) {
        table_.assign(1024, -1);
    }

    // Null if there is none.
    const Value* find(const TokenKey& key) const {
        const int32_t found = table_[slot_of(key)];
        return found < 0 ? nullptr : &entries_[found].value;
    }

    // Uses an entry, which is empty if it is new.
    Value& use(const TokenKey& key) {
        int32_t found = table_[slot_of(key)];
        if (found < 0) {
            found = allocate();
            entries_[found] = {key, 0, Value{}};
            if (entries_.size() * 2 >= table_.size())
                grow_table();
            else
                table_[slot_of(key)] = found;
        }
        Entry& entry = entries_[found];
        if (entry.uses < most_uses) ++entry.uses;
        return entry.value;
    }

    int64_t size() const { return static_cast<int64_t>(entries_.size()); }
    int64_t bytes() const {
        return static_cast<int64_t>(entries_.capacity() * sizeof(Entry) +
                                    table_.capacity() * sizeof(int32_t));
    }

   private:
    static constexpr int most_uses = 3;

    struct Entry {
        TokenKey key;
        uint32_t uses;
        Value value;
    };

    uint64_t home_of(const TokenKey& key) const {
        uint64_t mixed = static_cast<uint64_t>(static_cast<uint32_t>(key.first)) << 32 |
                         static_cast<uint32_t>(key.second);
        mixed ^= static_cast<uint64_t>(static_cast<uint32_t>(key.tenant)) * 0xC2B2AE3D27D4EB4Full;
        mixed ^= mixed >> 31;
        mixed *= 0x9E3779B97F4A7C15ull;
        return (mixed ^ mixed >> 29) & (table_.size() - 1);
    }

    // Where a key stands, or would.
    uint64_t slot_of(const TokenKey& key) const {
        uint64_t slot = home_of(key);
        while (table_[slot] >= 0 && !(entries_[table_[slot]].key == key))
            slot = (slot + 1) & (table_.size() - 1);
        return slot;
    }

    int32_t allocate() {
        if (entries_.size() < capacity_) {
            if (entries_.size() == entries_.capacity())  // which would grow beyond the bound
                entries_.reserve(std::min(std::max<size_t>(64, 2 * entries_.size()), capacity_));
            entries_.push_back({});
            return static_cast<int32_t>(entries_.size()) - 1;
        }
        for (;; ++hand_) {
            if (hand_ == entries_.size()) hand_ = 0;
            if (entries_[hand_].uses == 0) break;
            --entries_[hand_].uses;
        }
        release(slot_of(entries_[hand_].key));
        return static_cast<int32_t>(hand_++);
    }

    // Frees a slot of the table, closing the gap.
    void release(uint64_t hole) {
        const uint64_t mask = table_.size() - 1;
        for (uint64_t slot = (hole + 1) & mask; table_[slot] >= 0; slot = (slot + 1) & mask) {
            const uint64_t home = home_of(entries_[table_[slot]].key);
            if (((slot - home) & mask) < ((slot - hole) & mask)) continue;
            table_[hole] = table_[slot];
            hole = slot;
        }
        table_[hole] = -1;
    }

    void grow_table() {
        table_.assign(table_.size() * 2, -1);
        for (size_t i = 0; i < entries_.size(); ++i)
            table_[slot_of(entries_[i].key)] = static_cast<int32_t>(i);
    }

    size_t capacity_;
    std::vector<Entry> entries_;
    std::vector<int32_t> table_;  // open addressing, -1 where free
    size_t hand_ = 0;
};

}  // namespace ockham
