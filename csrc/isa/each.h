// Functions that every instruction set has: OCKHAM_DECLARE(Type name) declares them, and
// OCKHAM_EACH_ISA(name) is their list in the order of Isa, to fill an array of isa_count.
#pragma once

#if defined(__x86_64__)
#define OCKHAM_DECLARE(...)        \
    namespace portable {           \
    __VA_ARGS__;                   \
    }                              \
    namespace avx2 {               \
    __VA_ARGS__;                   \
    }                              \
    namespace avx512 {             \
    __VA_ARGS__;                   \
    }                              \
    static_assert(true)
#define OCKHAM_EACH_ISA(name) \
    { portable::name, avx2::name, avx512::name }
#else
#define OCKHAM_DECLARE(...) \
    namespace portable {    \
    __VA_ARGS__;            \
    }                       \
    static_assert(true)
#define OCKHAM_EACH_ISA(name) \
    { portable::name }
#endif
