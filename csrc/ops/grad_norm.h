// grad_norm: sqrt(Σ x²) over all elements of all tensors together.
#ifndef PYGPT_OPS_GRAD_NORM_H
#define PYGPT_OPS_GRAD_NORM_H

#include <vector>

#include "core/tensor_view.h"

namespace pygpt::grad_norm {

// All tensors contiguous and on one device.
struct Forward {
    std::vector<TensorView> tensors;  // any shapes and dtypes
    TensorView out;                   // (), float64 if any of them is, else float32
};

void forward(const Forward& arguments);

}  // namespace pygpt::grad_norm

#endif
