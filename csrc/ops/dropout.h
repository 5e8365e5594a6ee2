// dropout: out = x / (1 - p) where an element is kept, 0 where it is dropped, each with probability p by itself.
//
// Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014. What is kept is a
// function of seed, row and place in the row alone (core/philox.h), so the backward is the same operation on grad_out,
// and a recomputation repeats the mask.
#ifndef PYGPT_OPS_DROPOUT_H
#define PYGPT_OPS_DROPOUT_H

#include "core/tensor_view.h"

namespace pygpt::dropout {

// All tensors contiguous.
struct Forward {
    TensorView x;     // (B, ...): with two dimensions or more, the first counts batch rows; else there is one row
    TensorView seed;  // (), int64: row b has the seed s + b
    double p;         // 0..1
    TensorView out;   // like x
    // set by the check
    std::int64_t rows = 0;
    std::int64_t width = 0;  // elements of a row
};

void forward(Forward arguments);

}  // namespace pygpt::dropout

#endif
