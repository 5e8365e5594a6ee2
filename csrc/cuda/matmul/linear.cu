// linear, forward and backward: three matrix products and what is fused to them (product.h), by the products of either
// architecture.
//
// Forward:   out = activation(x · weightᵀ + bias) + residual      (M, K) · (K, N) -> (M, N)
// Backward:  g = grad_out · activation'(pre_activation)           (M, N)
//            grad_x = g · weight                                  (M, N) · (N, K) -> (M, K)
//            grad_weight = gᵀ · x                                 (N, M) · (M, K) -> (N, K)
//            grad_bias = Σ_rows g                                 (N,)
//
// g is written once where it is not grad_out itself, since both products read it; its sum is taken in the same pass.
#include "cuda/execution.h"
#include "cuda/kernels.h"
#include "cuda/matmul/product.h"
#include "cuda/pointer.h"

namespace pygpt::cuda {
namespace {

void forward_by(void (*multiply)(const Product&), const linear::Forward& a) {
    multiply({.dtype = a.x.dtype,
              .form = Form::rows_rows,
              .a = operand(a.x, a.M, a.K, a.x.dtype),
              .b = operand(a.weight, a.N, a.K, a.x.dtype),
              .M = a.M,
              .N = a.N,
              .K = a.K,
              .epilogue = {.bias = either(a.bias),
                           .pre_activation = pointer<void>(a.pre_activation),
                           .activation = a.activation,
                           .residual = either(a.residual),
                           .out = either(a.out),
                           .pitch = a.N}});
}

}  // namespace

template <int architecture>
void linear_forward(const linear::Forward& a) {
    forward_by(product<architecture>, a);
}

void linear_decode(const linear::Forward& a) {
    forward_by(skinny_product, a);
}

template <int architecture>
void linear_backward(const linear::Backward& a) {
    const DType dtype = a.x.dtype;
    TensorView g = a.grad_out;
    const bool as_it_is = a.activation == Activation::none && g.dtype == dtype;
    if (!as_it_is) {
        g.dtype = dtype;
        g.data = scratch<unsigned char>(static_cast<std::size_t>(a.M * a.N * bytes_of(dtype)));
    }
    if (!as_it_is || a.grad_bias) {
        sum_rows({.dtype = dtype,
                  .grad_out = either(a.grad_out),
                  .pre_activation = a.activation == Activation::none ? nullptr : a.pre_activation->data,
                  .activation = a.activation,
                  .written = as_it_is ? nullptr : g.data,
                  .rows = a.M,
                  .width = a.N,
                  .pitch = a.N,
                  .sums = either(a.grad_bias)});
    }
    if (!a.grad_x && !a.grad_weight) return;
    const Matrix gradient = operand(g, a.M, a.N, dtype);
    if (a.grad_x) {
        product<architecture>({.dtype = dtype,
                               .form = Form::rows_across,
                               .a = gradient,
                               .b = operand(a.weight, a.N, a.K, dtype),
                               .M = a.M,
                               .N = a.K,
                               .K = a.N,
                               .epilogue = {.out = either(*a.grad_x), .pitch = a.K}});
    }
    if (a.grad_weight) {
        weight_gradient<architecture>({.dtype = dtype,
                                       .a = gradient,
                                       .b = operand(a.x, a.M, a.K, dtype),
                                       .M = a.N,
                                       .N = a.K,
                                       .K = a.M,
                                       .out = either(*a.grad_weight)});
    }
}

template void linear_forward<80>(const linear::Forward&);
template void linear_forward<90>(const linear::Forward&);
template void linear_backward<80>(const linear::Backward&);
template void linear_backward<90>(const linear::Backward&);

}  // namespace pygpt::cuda
