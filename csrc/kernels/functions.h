// exp, tanh and the activations, in 16 lanes.
//
// Made of single additions, multiplications and divisions only, so that every instruction set gives
// the same bits; what the C library does differs between machines. The largest errors, measured
// over all floats by tests/kernels/test_cpu_functions.py, stand at each function.
#pragma once

#include "kernels/lanes.h"

namespace ockham {
namespace OCKHAM_ISA_NAMESPACE {

// e^x for x in [-87.33654, 88.37626].
//
// x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 is split so that n * high is exact. The polynomial is that
// of Cephes' expf (Moshier, 1989).
static inline Lanes exponential_in_range(Lanes x) {
    const Lanes magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Lanes shifted = x * broadcast(1.44269504088896341f) + magic;
    const Lanes n = shifted - magic;
    const Lanes r = (x - n * broadcast(0.693359375f)) - n * broadcast(-2.12194440e-4f);
    Lanes p = broadcast(1.9875691500e-4f);
    p = p * r + broadcast(1.3981999507e-3f);
    p = p * r + broadcast(8.3334519073e-3f);
    p = p * r + broadcast(4.1665795894e-2f);
    p = p * r + broadcast(1.6666665459e-1f);
    p = p * r + broadcast(5.0000001201e-1f);
    return ((p * (r * r) + r) + broadcast(1.0f)) * power_of_two(shifted);
}

// e^x for x <= 0 within 1.5 units in the last place; 0 below -87.33654, where the result would be
// subnormal; NaN for NaN.
static inline Lanes exponential_of_negative(Lanes x) {
    return select(less(x, broadcast(-87.33654f)), zero(), exponential_in_range(x));
}

// The same for any x; infinity above 88.37626.
static inline Lanes exponential(Lanes x) {
    return select(less(broadcast(88.37626f), x), broadcast(__builtin_inff()),
                  exponential_of_negative(x));
}

// tanh x within 2 units in the last place: Cephes' polynomial below 0.625, 1 - 2 / (e^2|x| + 1) above.
static inline Lanes hyperbolic_tangent(Lanes x) {
    const Lanes size = abs(x), one = broadcast(1.0f), two = broadcast(2.0f);
    const Lanes z = x * x;
    Lanes p = broadcast(-5.70498872745e-3f);
    p = p * z + broadcast(2.06390887954e-2f);
    p = p * z + broadcast(-5.37397155531e-2f);
    p = p * z + broadcast(1.33314422036e-1f);
    p = p * z + broadcast(-3.33332819422e-1f);
    const Lanes small = (p * z) * x + x;
    const Lanes large = with_sign(one - two / (exponential(size + size) + one), x);
    // Written so that NaN takes the polynomial, which keeps it.
    return select(less(broadcast(0.625f), size), large, small);
}

// 1 / (1 + e^-x)
static inline Lanes logistic(Lanes x) {
    const Lanes one = broadcast(1.0f);
    return one / (one + exponential(zero() - x));
}

static inline Lanes silu(Lanes x) { return x * logistic(x); }

// The lesser of x and a limit; NaN for NaN.
static inline Lanes at_most(Lanes x, Lanes limit) { return select(less(limit, x), limit, x); }

// Of gpt-oss's gated feed-forward what a gate becomes, x * logistic(1.702 x) with x at most 7; and the
// up, which is kept within 7 of zero before 1 is added.
static inline Lanes clamped_swish(Lanes x) {
    x = at_most(x, broadcast(7.0f));
    return x * logistic(x * broadcast(1.702f));
}
static inline Lanes clamped_up(Lanes x) {
    const Lanes least = broadcast(-7.0f);
    x = at_most(x, broadcast(7.0f));
    return select(less(x, least), least, x) + broadcast(1.0f);
}

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
static inline Lanes gelu_tanh(Lanes x) {
    const Lanes inner =
        broadcast(0.79788456080286536f) * (x + ((broadcast(0.044715f) * x) * x) * x);
    return (broadcast(0.5f) * x) * (broadcast(1.0f) + hyperbolic_tangent(inner));
}

// x / 2 * (1 + erf(x / sqrt 2)): within 2 units in the last place for x >= 0, and within 1.5e-7 below.
//
// With t = |x| / sqrt 2: erf t = t p(t^2) below 1, and 1 - e^(q(t) - t^2) from there on, where the
// exponential is erfc t and stands alone on the negative side. p and q were fitted to erf(t) / t on
// [0, 1] and to log(erfc t) + t^2 on [0.95, 6], by iterated reweighted least squares towards the least
// largest error of erf.
static inline Lanes gelu(Lanes x) {
    const Lanes t = abs(x) * broadcast(0.70710678118654752f), half = x * broadcast(0.5f);
    const Lanes z = t * t;
    Lanes p = broadcast(7.889119297033176e-05f);
    p = p * z + broadcast(-0.0008020841050893068f);
    p = p * z + broadcast(0.005189535208046436f);
    p = p * z + broadcast(-0.026854444295167923f);
    p = p * z + broadcast(0.11283600330352783f);
    p = p * z + broadcast(-0.3761262595653534f);
    p = p * z + broadcast(1.1283791065216064f);
    const Lanes small = half + (abs(half) * t) * p;
    const Lanes most = broadcast(6.0f), near = select(less(most, t), most, t);
    Lanes q = broadcast(-9.949206287274137e-06f);
    q = q * near + broadcast(0.0002669213863555342f);
    q = q * near + broadcast(-0.0031392835080623627f);
    q = q * near + broadcast(0.021755650639533997f);
    q = q * near + broadcast(-0.10200606286525726f);
    q = q * near + broadcast(0.3599410653114319f);
    q = q * near + broadcast(-1.1256886720657349f);
    q = q * near + broadcast(-0.000725102552678436f);
    const Lanes rest = exponential_of_negative(q - z);
    const Lanes large = half * select(less(x, zero()), rest, broadcast(2.0f) - rest);
    // Written so that NaN takes the polynomial, which keeps it.
    return select(less(t, broadcast(1.0f)), small, select(less(zero(), t), large, small));
}

static inline Lanes relu(Lanes x) { return select(less(x, zero()), zero(), x); }

}  // namespace OCKHAM_ISA_NAMESPACE
}  // namespace ockham
