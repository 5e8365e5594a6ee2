// Layer norm, forward and backward. (rows, C) -> (rows, C)
//
// Forward, per row:   sum = x + residual;  mean = Σ sum / C;  rstd = 1 / sqrt(Σ (sum - mean)² / C + eps)
//                     y = (sum - mean) · rstd · weight + bias
// Backward, per row:  n = (x - mean) · rstd;  g = grad_out · weight
//                     grad_x = rstd · (g - Σ g / C - n · Σ g·n / C) + grad_sum
//          per column: grad_weight = Σ_rows grad_out · n;  grad_bias = Σ_rows grad_out
//
// norm.h has the loops.
#include "cpu/kernels.h"
#include "cpu/kernels/norm.h"

namespace pygpt::cpu {

template <>
void layer_norm_forward<this_isa>(const layer_norm::Forward& a) {
    norm_forward(a);
}

template <>
void layer_norm_backward<this_isa>(const layer_norm::Backward& a) {
    norm_backward(a);
}

}  // namespace pygpt::cpu
