// The activations and their derivatives, of one float32. The formulas are those of cpu/kernels/activation.h: one
// exponential each, and no cancellation where the result is small.
#ifndef PYGPT_CUDA_MATMUL_ACTIVATION_CUH
#define PYGPT_CUDA_MATMUL_ACTIVATION_CUH

#include "ops/activation.h"

namespace pygpt::cuda {

struct Activated {
    float value;
    float slope;
};

// gelu_tanh is x·σ(2u), 2u = scale·(x + 0.044715·x³), since (1 + tanh u) / 2 = σ(2u).
constexpr float gelu_tanh_scale = 1.5957691216057308f;  // 2·sqrt(2/π)
constexpr float sqrt_half = 0.7071067811865476f;
constexpr float inverse_sqrt_2pi = 0.3989422804014327f;

__device__ inline Activated activate_with_slope(Activation activation, float x) {
    switch (activation) {
        case Activation::none:
            break;
        case Activation::gelu: {
            const float distribution = 0.5f * erfcf(-x * sqrt_half);
            const float density = inverse_sqrt_2pi * expf(-0.5f * x * x);
            return {x * distribution, fmaf(x, density, distribution)};
        }
        case Activation::gelu_tanh: {
            const float square = x * x;
            const float power = expf(-fabsf(x) * gelu_tanh_scale * fmaf(square, 0.044715f, 1.0f));  // e^-|2u|
            const float upper = 1.0f / (1.0f + power);
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

__device__ inline float activate(Activation activation, float x) {
    return activate_with_slope(activation, x).value;
}

}  // namespace pygpt::cuda

#endif
