#include "ops/linear_cross_entropy.h"

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"
#include "ops/product_check.h"

namespace pygpt::linear_cross_entropy {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cuda_sm90", cuda::refuses_all_but_16_bit<90>, cuda::linear_cross_entropy_forward<90>},
    {"cuda_sm80", cuda::refuses<80>, cuda::linear_cross_entropy_forward<80>},
    {"cpu_avx512_bf16", cpu::refuses<Isa::avx512_bf16>, cpu::linear_cross_entropy_forward<Isa::avx512_bf16>},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::linear_cross_entropy_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::linear_cross_entropy_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::linear_cross_entropy_forward<Isa::scalar>},
};
Op op("linear_cross_entropy", forward_table);

// A value for each target.
void for_each_target(const check::Named& argument, const Forward& a, DType dtype) {
    if (!same_shape(argument.tensor, a.targets)) {
        throw ValueError(text(argument.name, " must have the shape of targets, ", shape_text(a.targets), ", but has ",
                              shape_text(argument.tensor)));
    }
    check::dtype_is(argument, dtype, "what losses are computed in");
    check::on_device(argument, a.hidden.device, "where hidden is");
    check::contiguous(argument);
}

}  // namespace

void forward(Forward arguments) {
    Forward& a = arguments;
    const check::Named hidden{"hidden", a.hidden};
    const check::ProductSizes sizes = check::product_sizes(hidden, {"weight", a.weight});
    a.M = sizes.M;
    a.C = sizes.K;
    a.V = sizes.N;
    if (a.V == 0) throw ValueError("weight must have a row for each token, at least 1, but has none");
    if (a.bias) check::product_bias({"bias", *a.bias}, hidden, a.V);

    TensorView expected = a.hidden;
    --expected.dimensions;
    const check::Named targets{"targets", a.targets};
    if (!same_shape(a.targets, expected)) {
        throw ValueError(text("targets must have shape ", shape_text(expected),
                              " (hidden without its last dimension), but has ", shape_text(a.targets)));
    }
    check::dtype_is(targets, DType::int64, "rows of weight");
    check::on_device(targets, a.hidden.device, "where hidden is");
    check::contiguous(targets);
    check::indices_in(targets, a.V, a.ignore_index, "the number of rows of weight");

    const DType number = a.hidden.dtype == DType::float64 ? DType::float64 : DType::float32;
    if (a.loss && a.reduction == Reduction::none) {
        for_each_target({"loss", *a.loss}, a, number);
    } else if (a.loss) {
        check::shape_is({"loss", *a.loss}, {}, "a single value");
        check::dtype_is({"loss", *a.loss}, number, "what losses are computed in");
        check::on_device({"loss", *a.loss}, a.hidden.device, "where hidden is");
    }
    if (a.grad_losses) {
        for_each_target({"grad_losses", *a.grad_losses}, a, number);
        if (a.reduction != Reduction::none) throw ValueError("grad_losses must be None where losses are reduced");
    }
    if (a.grad_hidden) check::like({"grad_hidden", *a.grad_hidden}, hidden);
    if (a.grad_weight) check::like({"grad_weight", *a.grad_weight}, {"weight", a.weight});
    if (a.grad_bias) check::product_bias({"grad_bias", *a.grad_bias}, hidden, a.V);
    op.run(forward_table, {a.hidden.dtype, a.hidden.device}, a);
}

}  // namespace pygpt::linear_cross_entropy
