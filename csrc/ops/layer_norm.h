// layer_norm: y = (x - mean(x)) · rstd(x) · weight + bias over the last dimension, rstd = 1 / sqrt(var(x) + eps).
//
// Ba, Kiros, Hinton, "Layer Normalization", 2016, eq. 4; the variance is the biased one. With a residual, what is
// normalised is sum = x + residual (rounded to the residual's dtype), which is also returned: the pre-norm block's two
// steps in one pass. In mixed precision the residual stream stays in float32, and what is added to it, and what comes
// out of the norm, has 16 bits.
#ifndef PYGPT_OPS_LAYER_NORM_H
#define PYGPT_OPS_LAYER_NORM_H

#include <optional>

#include "core/tensor_view.h"

namespace pygpt::layer_norm {

// All tensors contiguous. rows = the product of all dimensions but the last, C = the last (width).
struct Forward {
    TensorView x;                        // (..., C)
    std::optional<TensorView> residual;  // like x, or float32 where x is 16-bit
    TensorView weight;                   // (C,), float32, or x's dtype where that is the residual's too
    std::optional<TensorView> bias;      // like weight
    double eps;
    TensorView out;                  // like x
    std::optional<TensorView> sum;   // like residual, and present with it
    std::optional<TensorView> mean;  // (rows,), float32, float64 for float64; for the backward
    std::optional<TensorView> rstd;  // like mean
    // set by the check
    std::int64_t rows = 0;
    std::int64_t width = 0;
};

struct Backward {
    TensorView grad_out;                    // (..., C)
    std::optional<TensorView> grad_sum;     // like x: the gradient of `sum`, added to grad_x
    TensorView x;                           // what was normalised: x, or sum where there was a residual; grad_out's
                                            // dtype, or float32 where that is 16-bit
    TensorView weight;                      // (C,)
    TensorView mean, rstd;                  // (rows,)
    TensorView grad_x;                      // like x; also the residual's gradient
    std::optional<TensorView> grad_narrow;  // like grad_out: grad_x, rounded, for the summand of that dtype
    std::optional<TensorView> grad_weight;  // like weight
    std::optional<TensorView> grad_bias;    // like weight
    // set by the check
    std::int64_t rows = 0;
    std::int64_t width = 0;
};

void forward(Forward arguments);
void backward(Backward arguments);

}  // namespace pygpt::layer_norm

#endif
