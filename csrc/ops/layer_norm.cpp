#include "ops/layer_norm.h"

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"

namespace pygpt::layer_norm {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::layer_norm_forward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::layer_norm_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::layer_norm_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::layer_norm_forward<Isa::scalar>},
};
const Implementation<Backward> backward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::layer_norm_backward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::layer_norm_backward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::layer_norm_backward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::layer_norm_backward<Isa::scalar>},
};
Op op("layer_norm", forward_table);

DType statistics_dtype(DType dtype) {
    return dtype == DType::float64 ? DType::float64 : DType::float32;
}

void like(const check::Named& argument, const TensorView& x) {
    if (!same_shape(argument.tensor, x)) {
        throw ValueError(text(argument.name, " must have the shape of x, ", shape_text(x), ", but has ",
                              shape_text(argument.tensor)));
    }
    check::dtype_is(argument, x.dtype, "the dtype of x");
    check::on_device(argument, x.device, "where x is");
    check::contiguous(argument);
}

void parameter(const check::Named& argument, const TensorView& x, std::int64_t width) {
    if (argument.tensor.dtype != DType::float32) check::dtype_is(argument, x.dtype, "the dtype of x, or float32");
    check::on_device(argument, x.device, "where x is");
    check::shape_is(argument, {width}, "the last dimension of x");
    check::contiguous(argument);
}

void statistics(const check::Named& argument, const TensorView& x, std::int64_t rows) {
    check::dtype_is(argument, statistics_dtype(x.dtype), "what statistics are kept in");
    check::on_device(argument, x.device, "where x is");
    check::shape_is(argument, {rows}, "one value a row of x");
    check::contiguous(argument);
}

// (rows, width) of x.
std::pair<std::int64_t, std::int64_t> sizes(const TensorView& x) {
    check::dtype_in({"x", x}, {DType::float32, DType::bfloat16, DType::float16, DType::float64});
    if (x.dimensions == 0 || x.shape[x.dimensions - 1] == 0) {
        throw ValueError(text("x must have a last dimension of at least 1, but has shape ", shape_text(x)));
    }
    check::contiguous({"x", x});
    const std::int64_t width = x.shape[x.dimensions - 1];
    return {elements(x) / width, width};
}

}  // namespace

void forward(Forward arguments) {
    Forward& a = arguments;
    std::tie(a.rows, a.width) = sizes(a.x);
    if (a.residual) like({"residual", *a.residual}, a.x);
    parameter({"weight", a.weight}, a.x, a.width);
    if (a.bias) {
        parameter({"bias", *a.bias}, a.x, a.width);
        check::dtype_is({"bias", *a.bias}, a.weight.dtype, "the dtype of weight");
    }
    if (!(a.eps >= 0)) throw ValueError(text("eps must be at least 0, but is ", a.eps));
    like({"out", a.out}, a.x);
    if (a.sum) like({"sum", *a.sum}, a.x);
    if (a.mean) statistics({"mean", *a.mean}, a.x, a.rows);
    if (a.rstd) statistics({"rstd", *a.rstd}, a.x, a.rows);
    op.run(forward_table, {a.x.dtype, a.x.device}, a);
}

void backward(Backward arguments) {
    Backward& a = arguments;
    std::tie(a.rows, a.width) = sizes(a.x);
    like({"grad_out", a.grad_out}, a.x);
    if (a.grad_sum) like({"grad_sum", *a.grad_sum}, a.x);
    parameter({"weight", a.weight}, a.x, a.width);
    statistics({"mean", a.mean}, a.x, a.rows);
    statistics({"rstd", a.rstd}, a.x, a.rows);
    like({"grad_x", a.grad_x}, a.x);
    if (a.grad_weight) parameter({"grad_weight", *a.grad_weight}, a.x, a.width);
    if (a.grad_bias) parameter({"grad_bias", *a.grad_bias}, a.x, a.width);
    op.run(backward_table, {a.x.dtype, a.x.device}, a);
}

}  // namespace pygpt::layer_norm
