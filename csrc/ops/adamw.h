// adamw: one step of AdamW on any number of parameters, in place.
//
//   g = grad · grad_scale
//   exp_avg = beta1 · exp_avg + (1 - beta1) · g;  exp_avg_sq = beta2 · exp_avg_sq + (1 - beta2) · g²
//   p = (1 - lr · weight_decay) · p - lr / (1 - beta1^step) · exp_avg / (sqrt(exp_avg_sq / (1 - beta2^step)) + eps)
//
// Loshchilov, Hutter, "Decoupled weight decay regularization", 2019, algorithm 2; torch.optim.AdamW's formula. Where
// there is a master copy, p is that, and param is p rounded to its dtype.
#ifndef PYGPT_OPS_ADAMW_H
#define PYGPT_OPS_ADAMW_H

#include <optional>
#include <vector>

#include "core/tensor_view.h"

namespace pygpt::adamw {

// Contiguous tensors of one shape and device.
struct Parameter {
    TensorView param;
    TensorView grad;                    // param's dtype
    TensorView exp_avg, exp_avg_sq;     // float32, float64 for float64
    std::optional<TensorView> master;   // float32, for a param of 16 bits
    double step;                        // from 1
    std::optional<TensorView> counted;  // (), float32: the step instead, which a kernel reads when it runs
};

struct Step {
    std::vector<Parameter> parameters;
    double lr, beta1, beta2, eps, weight_decay;
    std::optional<TensorView> grad_scale;  // (), float32: the clipping coefficient
    std::optional<TensorView> rate;        // (), float32: lr instead, if and only if all steps are counted
};

void step(const Step& arguments);

}  // namespace pygpt::adamw

#endif
