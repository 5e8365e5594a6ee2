// The activations and their derivatives, a vector at a time.
//
// Both forms of GELU need one exponential. gelu_tanh is x·σ(2u), u = sqrt(2/π)·(x + 0.044715·x³), since
// (1 + tanh u) / 2 = σ(2u): no cancellation where the result is small. gelu is x·Φ(x), with
// Φ(-a) = e^(-a²/2)·g(a) / 2 for a >= 0, where g falls slowly from 1 and is fitted by a polynomial in 1 / (1 + 0.265·a)
// (relative error 3.2e-8).
#ifndef PYGPT_CPU_KERNELS_ACTIVATION_H
#define PYGPT_CPU_KERNELS_ACTIVATION_H

#include <numbers>

#include "cpu/kernels/simd.h"
#include "ops/activation.h"

namespace pygpt::cpu {
namespace {

// Φ(x), and e^(-x²/2), from which the density follows.
template <class T>
struct Normal {
    Vec<T> distribution;
    Vec<T> bell;
};

#if defined(__AVX2__)
inline Normal<float> normal(Vec<float> x) {
    const auto c = [](float value) { return Float::broadcast(value); };
    const Float a = abs(x);
    const Float w = c(1.0f) / fma(c(0.265f), a, c(1.0f));
    Float g = fma(c(0.061641563f), w, c(-0.28845656f));
    g = fma(g, w, c(0.43562853f));
    g = fma(g, w, c(-0.23272374f));
    g = fma(g, w, c(0.27590528f));
    g = fma(g, w, c(0.12062658f));
    g = fma(g, w, c(0.20540188f));
    g = fma(g, w, c(0.21049334f));
    g = fma(g, w, c(0.21148312f));
    const Float bell = exp(c(-0.5f) * a * a);
    const Float tail = c(0.5f) * bell * (g * w);
    return {select_less(x, Float::zero(), tail, c(1.0f) - tail), bell};
}
#else
template <class T>
Normal<T> normal(Vec<T> x) {
    return {{T(0.5) * std::erfc(-x.v * std::numbers::sqrt2_v<T> / 2)}, {std::exp(T(-0.5) * x.v * x.v)}};
}
#endif

// σ(2u) of gelu_tanh, and its derivative by 2u.
template <class T>
struct Gate {
    Vec<T> value;
    Vec<T> slope;
};

constexpr double gelu_tanh_scale = 2 * std::numbers::sqrt2 * std::numbers::inv_sqrtpi;  // 2u = scale·(x + 0.044715·x³)

template <class T>
Gate<T> gelu_tanh_gate(Vec<T> x) {
    const auto c = [](double value) { return Vec<T>::broadcast(static_cast<T>(value)); };
    const Vec<T> power = exp(abs(x) * fma(x * x, c(-0.044715 * gelu_tanh_scale), c(-gelu_tanh_scale)));  // e^-|2u|
    const Vec<T> upper = c(1) / (c(1) + power);
    const Vec<T> lower = power * upper;
    return {select_less(x, Vec<T>::zero(), lower, upper), lower * upper};
}

template <class T>
Vec<T> activate(Activation activation, Vec<T> x) {
    switch (activation) {
        case Activation::none:
            return x;
        case Activation::gelu:
            return x * normal(x).distribution;
        case Activation::gelu_tanh:
            return x * gelu_tanh_gate(x).value;
        case Activation::relu:
            return max(Vec<T>::zero(), x);  // NaN stays
    }
    return x;
}

// The activation and its derivative at x, which share their exponential.
template <class T>
struct Activated {
    Vec<T> value;
    Vec<T> slope;
};

template <class T>
Activated<T> activate_with_slope(Activation activation, Vec<T> x) {
    const auto c = [](double value) { return Vec<T>::broadcast(static_cast<T>(value)); };
    switch (activation) {
        case Activation::none:
            break;
        case Activation::gelu: {
            const auto [distribution, bell] = normal(x);
            return {x * distribution, fma(x * bell, c(std::numbers::inv_sqrtpi / std::numbers::sqrt2), distribution)};
        }
        case Activation::gelu_tanh: {
            const auto [value, slope] = gelu_tanh_gate(x);
            const Vec<T> near = max(c(-64), min(c(64), x));  // beyond, the slope is 0 and x · inner might overflow
            const Vec<T> inner = fma(near * near, c(3 * 0.044715 * gelu_tanh_scale), c(gelu_tanh_scale));
            return {x * value, fma(near * inner, slope, value)};
        }
        case Activation::relu:
            return {max(Vec<T>::zero(), x), select_less(Vec<T>::zero(), x, c(1), Vec<T>::zero())};
    }
    return {x, c(1)};
}

}  // namespace
}  // namespace pygpt::cpu

#endif
