// rms_norm: y = x · rstd(x) · weight over the last dimension, rstd = 1 / sqrt(mean(x²) + eps).
//
// Zhang, Sennrich, "Root Mean Square Layer Normalization", 2019, eq. 4. With a residual, what is normalised is sum =
// x + residual (rounded to the residual's dtype), which is also returned, as in layer_norm.
#ifndef PYGPT_OPS_RMS_NORM_H
#define PYGPT_OPS_RMS_NORM_H

#include <optional>

#include "core/tensor_view.h"

namespace pygpt::rms_norm {

// All tensors contiguous. rows = the product of all dimensions but the last, C = the last (width).
struct Forward {
    TensorView x;                        // (..., C)
    std::optional<TensorView> residual;  // like x, or float32 where x is 16-bit
    TensorView weight;                   // (C,), float32, or x's dtype where that is the residual's too
    double eps;
    TensorView out;                  // like x
    std::optional<TensorView> sum;   // like residual, and present with it
    std::optional<TensorView> rstd;  // (rows,), float32, float64 for float64; for the backward
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
    TensorView rstd;                        // (rows,)
    TensorView grad_x;                      // like x; also the residual's gradient
    std::optional<TensorView> grad_narrow;  // like grad_out: grad_x, rounded, for the summand of that dtype
    std::optional<TensorView> grad_weight;  // like weight
    // set by the check
    std::int64_t rows = 0;
    std::int64_t width = 0;
};

void forward(Forward arguments);
void backward(Backward arguments);

}  // namespace pygpt::rms_norm

#endif
