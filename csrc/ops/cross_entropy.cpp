#include "ops/cross_entropy.h"

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"

namespace pygpt::cross_entropy {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::cross_entropy_forward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::cross_entropy_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::cross_entropy_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::cross_entropy_forward<Isa::scalar>},
};
const Implementation<Backward> backward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::cross_entropy_backward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::cross_entropy_backward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::cross_entropy_backward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::cross_entropy_backward<Isa::scalar>},
};
Op op("cross_entropy", forward_table);

// (rows, vocabulary).
std::pair<std::int64_t, std::int64_t> sizes(const TensorView& logits, const TensorView& targets,
                                            std::int64_t ignore_index) {
    check::dtype_in({"logits", logits}, {DType::float32, DType::bfloat16, DType::float16, DType::float64});
    if (logits.dimensions == 0 || logits.shape[logits.dimensions - 1] == 0) {
        throw ValueError(text("logits must have a last dimension of at least 1, but has shape ", shape_text(logits)));
    }
    check::contiguous({"logits", logits});
    TensorView expected = logits;
    const std::int64_t vocabulary = expected.shape[--expected.dimensions];
    if (!same_shape(targets, expected)) {
        throw ValueError(text("targets must have shape ", shape_text(expected),
                              " (logits without their last dimension), but has ", shape_text(targets)));
    }
    check::dtype_is({"targets", targets}, DType::int64, "columns of logits");
    check::on_device({"targets", targets}, logits.device, "where logits are");
    check::contiguous({"targets", targets});
    check::indices_in({"targets", targets}, vocabulary, ignore_index, "the number of logits in a row");
    return {elements(targets), vocabulary};
}

void result(const check::Named& argument, const TensorView& logits, const TensorView* shape) {
    const DType dtype = logits.dtype == DType::float64 ? DType::float64 : DType::float32;
    check::dtype_is(argument, dtype, "what losses are computed in");
    check::on_device(argument, logits.device, "where logits are");
    if (!shape) {
        check::shape_is(argument, {}, "a single value");
    } else if (!same_shape(argument.tensor, *shape)) {
        throw ValueError(text(argument.name, " must have the shape of targets, ", shape_text(*shape), ", but has ",
                              shape_text(argument.tensor)));
    }
    check::contiguous(argument);
}

}  // namespace

Reduction reduction_named(const std::string& name) {
    if (name == "none") return Reduction::none;
    if (name == "sum") return Reduction::sum;
    if (name == "mean") return Reduction::mean;
    throw ValueError(text("reduction must be \"mean\", \"sum\" or \"none\", but is \"", name, "\""));
}

void forward(Forward arguments) {
    Forward& a = arguments;
    std::tie(a.rows, a.vocabulary) = sizes(a.logits, a.targets, a.ignore_index);
    result({"loss", a.loss}, a.logits, a.reduction == Reduction::none ? &a.targets : nullptr);
    if (a.maximum) result({"maximum", *a.maximum}, a.logits, &a.targets);
    if (a.sum) result({"sum", *a.sum}, a.logits, &a.targets);
    op.run(forward_table, {a.logits.dtype, a.logits.device}, a);
}

void backward(Backward arguments) {
    Backward& a = arguments;
    std::tie(a.rows, a.vocabulary) = sizes(a.logits, a.targets, a.ignore_index);
    result({"grad_loss", a.grad_loss}, a.logits, a.reduction == Reduction::none ? &a.targets : nullptr);
    result({"maximum", a.maximum}, a.logits, &a.targets);
    result({"sum", a.sum}, a.logits, &a.targets);
    check::like({"grad_logits", a.grad_logits}, {"logits", a.logits});
    op.run(backward_table, {a.logits.dtype, a.logits.device}, a);
}

}  // namespace pygpt::cross_entropy
