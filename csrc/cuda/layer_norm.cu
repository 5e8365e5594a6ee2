// Layer norm, forward and backward. (rows, C) -> (rows, C)
//
// Forward, per row:   sum = x + residual;  mean = Σ sum / C;  rstd = 1 / sqrt(Σ (sum - mean)² / C + eps)
//                     y = (sum - mean) · rstd · weight + bias
// Backward, per row:  n = (x - mean) · rstd;  g = grad_out · weight
//                     grad_x = rstd · (g - Σ g / C - n · Σ g·n / C) + grad_sum
//          per column: grad_weight = Σ_rows grad_out · n;  grad_bias = Σ_rows grad_out
//
// norm.cuh has the kernels, of which RMS norm leaves the mean out.
#include "cuda/kernels.h"
#include "cuda/norm.cuh"

namespace pygpt::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(T::max_team* warp_lanes, 2) layer_norm_forward_kernel(const Forward<T> a) {
    norm_forward(a);
}

template <class T>
__global__ void __launch_bounds__(T::max_team* warp_lanes, 1) layer_norm_backward_kernel(const Backward<T> a) {
    norm_backward(a);
}

}  // namespace

void layer_norm_forward(const layer_norm::Forward& a) {
    launch_forward<true>(a, pointer<void>(a.bias), pointer<float>(a.mean),
                         []<class T>() { return layer_norm_forward_kernel<T>; });
}

void layer_norm_backward(const layer_norm::Backward& a) {
    launch_backward<true>(a, pointer<float>(a.mean), pointer<void>(a.grad_bias),
                          []<class T>() { return layer_norm_backward_kernel<T>; });
}

}  // namespace pygpt::cuda
