// The tests of the kernels that need no Python: for the sanitizers, and for readers of the C++.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace ockham::tests {

struct Test {
    const char* name;
    void (*run)();
};

inline std::vector<Test>& all() {
    static std::vector<Test> tests;
    return tests;
}

// `static const Added added{"what holds", test};` at the end of a file adds a test.
struct Added {
    Added(const char* name, void (*run)()) { all().push_back({name, run}); }
};

inline void check(bool condition, const char* claim) {
    if (condition) return;
    std::fprintf(stderr, "does not hold: %s\n", claim);
    std::exit(1);
}

}  // namespace ockham::tests
