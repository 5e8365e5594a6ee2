// The activations and their derivatives, of one float32. The formulas are those of cpu/kernels/activation.h: one
// exponential each, and no cancellation where the result is small.
#ifndef PYGPT_CUDA_MATMUL_ACTIVATION_CUH
#define PYGPT_CUDA_MATMUL_ACTIVATION_CUH

#include "cuda/ptx/convert.cuh"
#include "ops/activation.h"

namespace pygpt::cuda {

// What a result is good for: of_16_bits where it is rounded to so many, by approximations of 22 bits.
enum class Precision { of_32_bits, of_16_bits };

struct Activated {
    float value;
    float slope;
};

// gelu_tanh is x·σ(2u), 2u = scale·(x + 0.044715·x³), since (1 + tanh u) / 2 = σ(2u).
constexpr float gelu_tanh_scale = 1.5957691216057308f;  // 2·sqrt(2/π)
constexpr float log2_e = 1.4426950408889634f;
constexpr float sqrt_half = 0.7071067811865476f;
constexpr float inverse_sqrt_2pi = 0.3989422804014327f;

template <Precision precision = Precision::of_32_bits>
__device__ inline Activated activate_with_slope(Activation activation, float x) {
    constexpr bool approximate = precision == Precision::of_16_bits;
    switch (activation) {
        case Activation::none:
            break;
        case Activation::gelu: {
            if constexpr (approximate) {
                // Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26: erfc(z) = Σ a_i·t^i · e^-z².
                const float t = ptx::reciprocal_approx(fmaf(0.3275911f * sqrt_half, fabsf(x), 1.0f));
                const float power = ptx::exp2_approx(-0.5f * log2_e * x * x);
                float sum = fmaf(1.061405429f, t, -1.453152027f);
                for (const float a : {1.421413741f, -0.284496736f, 0.254829592f}) sum = fmaf(sum, t, a);
                const float tail = 0.5f * sum * t * power;
                const float distribution = x < 0 ? tail : 1.0f - tail;
                return {x * distribution, fmaf(x, inverse_sqrt_2pi * power, distribution)};
            }
            const float distribution = 0.5f * erfcf(-x * sqrt_half);
            const float density = inverse_sqrt_2pi * expf(-0.5f * x * x);
            return {x * distribution, fmaf(x, density, distribution)};
        }
        case Activation::gelu_tanh: {
            const float square = x * x;
            const float scale = approximate ? gelu_tanh_scale * log2_e : gelu_tanh_scale;
            const float exponent = -fabsf(x) * scale * fmaf(square, 0.044715f, 1.0f);
            const float power = approximate ? ptx::exp2_approx(exponent) : expf(exponent);  // e^-|2u|
            const float upper = approximate ? ptx::reciprocal_approx(1.0f + power) : 1.0f / (1.0f + power);
            const float lower = power * upper;
            const float gate = x < 0 ? lower : upper;
            const float inner = gelu_tanh_scale * fmaf(square, 3 * 0.044715f, 1.0f);  // of 2u, by x
            // Where e^-|2u| vanishes the slope is the gate, though x·inner may overflow.
            const float rest = lower * upper;
            return {x * gate, rest > 0 ? fmaf(x * inner, rest, gate) : gate + rest};
        }
        case Activation::relu:
            return {x < 0 ? 0.0f : x, x > 0 ? 1.0f : 0.0f};  // NaN stays
    }
    return {x, 1.0f};
}

template <Precision precision = Precision::of_32_bits>
__device__ inline float activate(Activation activation, float x) {
    return activate_with_slope<precision>(activation, x).value;
}

}  // namespace pygpt::cuda

#endif
