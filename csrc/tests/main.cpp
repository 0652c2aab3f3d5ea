#include "tests/tests.h"

int main() {
    for (const ockham::tests::Test& test : ockham::tests::all()) {
        test.run();
        std::printf("holds: %s\n", test.name);
    }
    return 0;
}
