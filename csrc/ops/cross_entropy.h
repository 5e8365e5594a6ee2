// cross_entropy: loss = -log softmax(logits)[target] for each row; alone, summed, or its mean.
//
// Rows whose target is ignore_index have loss 0 and no gradient, and do not count in the mean; a mean over no rows is
// 0. Another target out of range is an error on the CPU; on a CUDA device it makes the row's loss and gradient NaN.
#ifndef PYGPT_OPS_CROSS_ENTROPY_H
#define PYGPT_OPS_CROSS_ENTROPY_H

#include <optional>
#include <string>

#include "core/tensor_view.h"

namespace pygpt::cross_entropy {

enum class Reduction { none, sum, mean };

// By its name in Python. Raises ValueError for any other.
Reduction reduction_named(const std::string& name);

// All tensors contiguous. rows = the number of targets, V = vocabulary. Losses and what is kept for the backward are
// float32, float64 for float64 logits.
struct Forward {
    TensorView logits;   // (..., V)
    TensorView targets;  // (...), int64: each in 0..V-1, or ignore_index
    std::int64_t ignore_index;
    Reduction reduction;
    TensorView loss;                    // like targets for none, else ()
    std::optional<TensorView> maximum;  // like targets: the row's largest logit; for the backward
    std::optional<TensorView> sum;      // like targets: Σ exp(logits - maximum); with maximum
    // set by the check
    std::int64_t rows = 0;
    std::int64_t vocabulary = 0;
};

struct Backward {
    TensorView grad_loss;  // like loss
    TensorView logits;
    TensorView targets;
    TensorView maximum;
    TensorView sum;
    std::int64_t ignore_index;
    Reduction reduction;
    TensorView grad_logits;  // like logits: (softmax(logits) - [column = target]) · the gradient of the row's loss
    // set by the check
    std::int64_t rows = 0;
    std::int64_t vocabulary = 0;
};

void forward(Forward arguments);
void backward(Backward arguments);

}  // namespace pygpt::cross_entropy

#endif
