// Functions that every instruction set has: OCKHAM_DECLARE(Type name) declares them, and
// OCKHAM_EACH_ISA(name) is their list in the order of Isa, to fill an array of isa_count. What amx does
// not do by itself, avx512 does. OCKHAM_ANY_ISA(name) is the list where one function serves them all.
//
// OCKHAM_DECLARE_TILES and OCKHAM_EACH_TILES are the same for a product that amx has a kernel of its own
// for, as soon as the compiler knows the instructions (OCKHAM_AMX).
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
    { portable::name, avx2::name, avx512::name, avx512::name }
#define OCKHAM_ANY_ISA(name) \
    { name, name, name, name }
#else
#define OCKHAM_DECLARE(...) \
    namespace portable {    \
    __VA_ARGS__;            \
    }                       \
    static_assert(true)
#define OCKHAM_EACH_ISA(name) \
    { portable::name }
#define OCKHAM_ANY_ISA(name) \
    { name }
#endif

#if defined(OCKHAM_AMX)
#define OCKHAM_DECLARE_TILES(...) \
    OCKHAM_DECLARE(__VA_ARGS__);  \
    namespace amx {               \
    __VA_ARGS__;                  \
    }                             \
    static_assert(true)
#define OCKHAM_EACH_TILES(name) \
    { portable::name, avx2::name, avx512::name, amx::name }
#else
#define OCKHAM_DECLARE_TILES(...) OCKHAM_DECLARE(__VA_ARGS__)
#define OCKHAM_EACH_TILES(name) OCKHAM_EACH_ISA(name)
#endif
