// rotary: elements i and i + D/2 of each head are turned, as one pair, by the i-th angle of their token's position.
//
//     out[i] = x[i] · cos - x[i + D/2] · sin        out[i + D/2] = x[i + D/2] · cos + x[i] · sin
//
// Su et al., "RoFormer", 2021, eq. 34, in the pairs of Hugging Face's Llama. Which angles a position has is the table's
// matter. A turn back by the same angles is the gradient. A position out of range is an error on the CPU; on a CUDA
// device its token is NaN.
#ifndef PYGPT_OPS_ROTARY_H
#define PYGPT_OPS_ROTARY_H

#include "core/tensor_view.h"

namespace pygpt::rotary {

struct Forward {
    TensorView x;          // (B, T, H, D), D even, last dimension of stride 1
    TensorView positions;  // (T,) or (B, T), int64, each in 0..P-1; contiguous
    TensorView table;      // (P, D), x's dtype or float32: cosines of the position's D/2 angles, then sines; contiguous
    bool back;             // turn the other way
    TensorView out;        // like x; contiguous
};

void forward(Forward arguments);

}  // namespace pygpt::rotary

#endif
