// feed_forward: out = w_out · activation(w_in · x + b_in) + b_out for each row of x.
//
// Vaswani et al., "Attention is all you need", 2017, section 3.3. The hidden row is rounded to x's dtype between the
// two products, as it would be between two linear layers; sums, biases and activation are in float32 (float64 for
// float64).
#ifndef PYGPT_OPS_FEED_FORWARD_H
#define PYGPT_OPS_FEED_FORWARD_H

#include <optional>

#include "core/tensor_view.h"
#include "ops/activation.h"

namespace pygpt::feed_forward {

// All tensors contiguous. M = rows of x, C = its width, N = w_out's first dimension. Weights are of x's dtype, or
// float32 to be rounded to it where x is 16-bit; biases of x's dtype or float32.
struct Forward {
    TensorView x;                           // (..., C)
    TensorView w_in;                        // (hidden, C)
    std::optional<TensorView> b_in;         // (hidden,)
    TensorView w_out;                       // (N, hidden)
    std::optional<TensorView> b_out;        // (N,)
    std::optional<TensorView> packed_w_in;  // what linear::pack() made of the weights in x's dtype
    std::optional<TensorView> packed_w_out;
    Activation activation;
    TensorView out;                            // (..., N), x's dtype
    std::optional<TensorView> pre_activation;  // (..., hidden), x's dtype: w_in · x + b_in, for the backward
    bool decode;                               // kernels for few rows may run, whose bits are not training's
    // set by the check
    std::int64_t M = 0;
    std::int64_t C = 0;
    std::int64_t hidden = 0;
    std::int64_t N = 0;
};

struct Backward {
    TensorView grad_out;  // like out
    TensorView x;
    TensorView w_in;
    TensorView w_out;
    TensorView pre_activation;
    Activation activation;
    std::optional<TensorView> grad_x;      // like x
    std::optional<TensorView> grad_w_in;   // like w_in
    std::optional<TensorView> grad_b_in;   // (hidden,), x's dtype or float32
    std::optional<TensorView> grad_w_out;  // like w_out
    std::optional<TensorView> grad_b_out;  // (N,), x's dtype or float32
    // set by the check
    std::int64_t M = 0;
    std::int64_t C = 0;
    std::int64_t hidden = 0;
    std::int64_t N = 0;
};

void forward(Forward arguments);
void backward(Backward arguments);

}  // namespace pygpt::feed_forward

#endif
