// RMS norm, forward and backward. (rows, C) -> (rows, C)
//
// Forward, per row:   sum = x + residual;  rstd = 1 / sqrt(Σ sum² / C + eps);  y = sum · rstd · weight
// Backward, per row:  n = x · rstd;  g = grad_out · weight;  grad_x = rstd · (g - n · Σ g·n / C) + grad_sum
//          per column: grad_weight = Σ_rows grad_out · n
//
// norm.cuh has the kernels, which are layer norm's without the mean.
#include "cuda/kernels.h"
#include "cuda/norm.cuh"

namespace pygpt::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(T::max_team* warp_lanes, 2) rms_norm_forward_kernel(const Forward<T> a) {
    norm_forward(a);
}

template <class T>
__global__ void __launch_bounds__(T::max_team* warp_lanes, 1) rms_norm_backward_kernel(const Backward<T> a) {
    norm_backward(a);
}

}  // namespace

void rms_norm_forward(const rms_norm::Forward& a) {
    launch_forward<false>(a, nullptr, nullptr, []<class T>() { return rms_norm_forward_kernel<T>; });
}

void rms_norm_backward(const rms_norm::Backward& a) {
    launch_backward<false>(a, nullptr, nullptr, []<class T>() { return rms_norm_backward_kernel<T>; });
}

}  // namespace pygpt::cuda
