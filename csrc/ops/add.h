// add: out = x + y, where y may lack leading dimensions of x (or have 1 there) and is then added to each part of x.
#ifndef PYGPT_OPS_ADD_H
#define PYGPT_OPS_ADD_H

#include "core/tensor_view.h"

namespace pygpt::add {

// All tensors contiguous. x is `repeats` parts of `width` elements, the number that y has.
struct Forward {
    TensorView x;    // (..., *shape of y)
    TensorView y;    // x's dtype
    TensorView out;  // like x
    // set by the check
    std::int64_t repeats = 0;
    std::int64_t width = 0;
};

// The gradient of y; that of x is grad_out itself.
struct Backward {
    TensorView grad_out;  // like x
    TensorView grad_y;    // like y: the sum of the parts of grad_out, in order
    // set by the check
    std::int64_t repeats = 0;
    std::int64_t width = 0;
};

void forward(Forward arguments);
void backward(Backward arguments);

}  // namespace pygpt::add

#endif
