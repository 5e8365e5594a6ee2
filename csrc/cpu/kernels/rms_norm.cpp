// RMS norm, forward and backward. (rows, C) -> (rows, C)
//
// Forward, per row:   sum = x + residual;  rstd = 1 / sqrt(Σ sum² / C + eps);  y = sum · rstd · weight
// Backward, per row:  n = x · rstd;  g = grad_out · weight;  grad_x = rstd · (g - n · Σ g·n / C) + grad_sum
//          per column: grad_weight = Σ_rows grad_out · n
//
// norm.h has the loops.
#include "cpu/kernels.h"
#include "cpu/kernels/norm.h"

namespace pygpt::cpu {

template <>
void rms_norm_forward<this_isa>(const rms_norm::Forward& a) {
    norm_forward(a);
}

template <>
void rms_norm_backward<this_isa>(const rms_norm::Backward& a) {
    norm_backward(a);
}

}  // namespace pygpt::cpu
