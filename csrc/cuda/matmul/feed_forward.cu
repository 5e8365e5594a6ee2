// feed_forward, forward and backward: the two products of a transformer's feed-forward part (product.h), by those of
// either architecture.
//
// Forward:   z = x · w_inᵀ + b_in                          (M, C) -> (M, hidden), kept for the backward
//            out = activation(z) · w_outᵀ + b_out          (M, hidden) -> (M, N)
// Backward:  g = (grad_out · w_out) · activation'(z)       (M, hidden)
//            grad_x = g · w_in                             (M, C)
//            grad_w_in = gᵀ · x                            (hidden, C), grad_b_in = Σ_rows g
//            grad_w_out = grad_outᵀ · activation(z)        (N, hidden), grad_b_out = Σ_rows grad_out
//
// The first product writes z and activation(z). The backward's first product reads z beside its sums, and writes g and
// activation(z), which was not kept: one exponential, shared with the derivative.
#include "cuda/execution.h"
#include "cuda/kernels.h"
#include "cuda/matmul/product.h"
#include "cuda/pointer.h"

namespace pygpt::cuda {
namespace {

// Scratch memory in the shape of a tensor.
TensorView scratch_like(const TensorView& tensor, std::int64_t elements) {
    TensorView out = tensor;
    out.data = scratch<unsigned char>(static_cast<std::size_t>(elements * bytes_of(tensor.dtype)));
    return out;
}

void forward_by(void (*multiply)(const Product&), const feed_forward::Forward& a) {
    const DType dtype = a.x.dtype;
    const TensorView activated = scratch_like(a.x, a.M * a.hidden);
    multiply({.dtype = dtype,
              .form = Form::rows_rows,
              .a = operand(a.x, a.M, a.C, dtype),
              .b = operand(a.w_in, a.hidden, a.C, dtype),
              .M = a.M,
              .N = a.hidden,
              .K = a.C,
              .epilogue = {.bias = either(a.b_in),
                           .pre_activation = pointer<void>(a.pre_activation),
                           .activation = a.activation,
                           .out = either(activated),
                           .pitch = a.hidden}});
    multiply({.dtype = dtype,
              .form = Form::rows_rows,
              .a = operand(activated, a.M, a.hidden, dtype),
              .b = operand(a.w_out, a.N, a.hidden, dtype),
              .M = a.M,
              .N = a.N,
              .K = a.hidden,
              .epilogue = {.bias = either(a.b_out), .out = either(a.out), .pitch = a.N}});
}

}  // namespace

template <int architecture>
void feed_forward_forward(const feed_forward::Forward& a) {
    forward_by(product<architecture>, a);
}

void feed_forward_decode(const feed_forward::Forward& a) {
    forward_by(skinny_product, a);
}

template <int architecture>
void feed_forward_backward(const feed_forward::Backward& a) {
    const DType dtype = a.x.dtype;
    if (a.grad_b_out) {
        sum_rows({.dtype = dtype,
                  .grad_out = either(a.grad_out),
                  .rows = a.M,
                  .width = a.N,
                  .pitch = a.N,
                  .sums = either(*a.grad_b_out)});
    }
    const Matrix grad_out = operand(a.grad_out, a.M, a.N, dtype);
    const TensorView g = scratch_like(a.pre_activation, a.M * a.hidden);
    const bool activates = a.activation != Activation::none;
    const TensorView activated =
        activates && a.grad_w_out ? scratch_like(a.pre_activation, a.M * a.hidden) : a.pre_activation;
    product<architecture>({.dtype = dtype,
                           .form = Form::rows_across,
                           .a = grad_out,
                           .b = operand(a.w_out, a.N, a.hidden, dtype),
                           .M = a.M,
                           .N = a.hidden,
                           .K = a.N,
                           .epilogue = {.activation = a.activation,
                                        .slope_at = activates ? a.pre_activation.data : nullptr,
                                        .activated = activates && a.grad_w_out ? activated.data : nullptr,
                                        .out = either(g),
                                        .pitch = a.hidden}});
    if (a.grad_b_in) {
        sum_rows({.dtype = dtype,
                  .grad_out = either(g),
                  .rows = a.M,
                  .width = a.hidden,
                  .pitch = a.hidden,
                  .sums = either(*a.grad_b_in)});
    }
    if (a.grad_w_out) {
        weight_gradient<architecture>({.dtype = dtype,
                                       .a = grad_out,
                                       .b = operand(activated, a.M, a.hidden, dtype),
                                       .M = a.N,
                                       .N = a.hidden,
                                       .K = a.M,
                                       .out = either(*a.grad_w_out)});
    }
    if (!a.grad_x && !a.grad_w_in) return;
    const Matrix gradient = operand(g, a.M, a.hidden, dtype);
    if (a.grad_x) {
        product<architecture>({.dtype = dtype,
                               .form = Form::rows_across,
                               .a = gradient,
                               .b = operand(a.w_in, a.hidden, a.C, dtype),
                               .M = a.M,
                               .N = a.C,
                               .K = a.hidden,
                               .epilogue = {.out = either(*a.grad_x), .pitch = a.C}});
    }
    if (a.grad_w_in) {
        weight_gradient<architecture>({.dtype = dtype,
                                       .a = gradient,
                                       .b = operand(a.x, a.M, a.C, dtype),
                                       .M = a.hidden,
                                       .N = a.C,
                                       .K = a.M,
                                       .out = either(*a.grad_w_in)});
    }
}

template void feed_forward_forward<80>(const feed_forward::Forward&);
template void feed_forward_forward<90>(const feed_forward::Forward&);
template void feed_forward_backward<80>(const feed_forward::Backward&);
template void feed_forward_backward<90>(const feed_forward::Backward&);

}  // namespace pygpt::cuda
