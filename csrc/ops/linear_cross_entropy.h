// linear_cross_entropy: cross_entropy of the logits hidden · weightᵀ + bias, which are never held as a whole.
//
// The loss is the one of cross_entropy and linear with float32 results, to the bit. Rows whose target is ignore_index
// have loss 0 and no gradient, whatever they hold, and do not count in the mean; a mean over no rows is 0.
//
// One call gives the loss, the gradients, or both. Gradients are those of the loss times `grad_losses`, one factor a
// row, or without them of the loss itself.
#ifndef PYGPT_OPS_LINEAR_CROSS_ENTROPY_H
#define PYGPT_OPS_LINEAR_CROSS_ENTROPY_H

#include <optional>

#include "core/tensor_view.h"
#include "ops/cross_entropy.h"

namespace pygpt::linear_cross_entropy {

using cross_entropy::Reduction;

// All tensors contiguous. M = the number of targets, C = width, V = vocabulary.
struct Forward {
    TensorView hidden;               // (..., C)
    TensorView weight;               // (V, C), hidden's dtype, or float32 to be rounded to it
    std::optional<TensorView> bias;  // (V,), hidden's dtype or float32
    TensorView targets;              // (...), int64: each in 0..V-1, or ignore_index
    std::int64_t ignore_index;
    Reduction reduction;
    std::optional<TensorView> loss;         // like targets for none, else (); float32, float64 for float64
    std::optional<TensorView> grad_losses;  // like targets, dtype of loss; only with Reduction::none
    std::optional<TensorView> grad_hidden;  // like hidden
    std::optional<TensorView> grad_weight;  // like weight
    std::optional<TensorView> grad_bias;    // like bias
    // set by the check
    std::int64_t M = 0;
    std::int64_t C = 0;
    std::int64_t V = 0;
};

void forward(Forward arguments);

}  // namespace pygpt::linear_cross_entropy

#endif
