// linear: out = activation(x · weightᵀ + bias) + residual over the last dimension.
//
// Sums, bias, activation and residual are in float32 (float64 for float64) and rounded once, to out's dtype.
#ifndef PYGPT_OPS_LINEAR_H
#define PYGPT_OPS_LINEAR_H

#include <optional>

#include "core/tensor_view.h"
#include "ops/activation.h"

namespace pygpt::linear {

// All tensors contiguous. M = the product of all dimensions of x but the last, K = the last, N = weight's first.
struct Forward {
    TensorView x;                             // (..., K)
    TensorView weight;                        // (N, K), x's dtype, or float32 to be rounded to it
    std::optional<TensorView> packed_weight;  // what pack() made of weight in x's dtype
    std::optional<TensorView> bias;           // (N,), x's dtype or float32
    Activation activation;
    std::optional<TensorView> residual;        // like out
    TensorView out;                            // (..., N), x's dtype or float32
    std::optional<TensorView> pre_activation;  // (..., N), x's dtype: x · weightᵀ + bias, for the backward
    bool decode;                               // kernels for few rows may run, whose bits are not training's
    // set by the check
    std::int64_t M = 0;
    std::int64_t N = 0;
    std::int64_t K = 0;
};

// g = grad_out · activation'(pre_activation), rounded to x's dtype. The residual's gradient is grad_out itself.
struct Backward {
    TensorView grad_out;                       // (..., N), x's dtype or float32
    TensorView x;                              // (..., K)
    TensorView weight;                         // (N, K)
    std::optional<TensorView> pre_activation;  // (..., N), present with an activation
    Activation activation;
    std::optional<TensorView> grad_x;       // like x: g · weight
    std::optional<TensorView> grad_weight;  // like weight: gᵀ · x
    std::optional<TensorView> grad_bias;    // (N,), x's dtype or float32: the sum of g's rows
    // set by the check
    std::int64_t M = 0;
    std::int64_t N = 0;
    std::int64_t K = 0;
};

// A copy of a weight in the order in which products on the CPU read it. Its layout depends on shape and dtype alone,
// so that every instruction set reads the same copy, with zeros past N and K:
//
//   (ceil(N / panel_columns), K, panel_columns)               float32, float64: for every place along K a row of
//   columns (ceil(N / panel_columns), ceil(K / 2), panel_columns, 2)  bfloat16: pairs of neighbours along K
struct Pack {
    TensorView weight;         // (N, K)
    TensorView packed_weight;  // (packed_bytes(N, K, weight's dtype),), uint8
};

constexpr std::int64_t panel_columns = 32;
std::int64_t packed_bytes(std::int64_t N, std::int64_t K, DType dtype);

void forward(Forward arguments);
void backward(Backward arguments);
void pack(Pack arguments);

}  // namespace pygpt::linear

#endif
