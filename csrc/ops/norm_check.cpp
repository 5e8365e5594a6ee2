#include "ops/norm_check.h"

namespace pygpt::check {

std::pair<std::int64_t, std::int64_t> rows_and_width(const TensorView& x) {
    dtype_in({"x", x}, {DType::float32, DType::bfloat16, DType::float16, DType::float64});
    if (x.dimensions == 0 || x.shape[x.dimensions - 1] == 0) {
        throw ValueError(text("x must have a last dimension of at least 1, but has shape ", shape_text(x)));
    }
    contiguous({"x", x});
    const std::int64_t width = x.shape[x.dimensions - 1];
    return {elements(x) / width, width};
}

void like_x(const Named& argument, const TensorView& x) {
    if (!same_shape(argument.tensor, x)) {
        throw ValueError(text(argument.name, " must have the shape of x, ", shape_text(x), ", but has ",
                              shape_text(argument.tensor)));
    }
    dtype_is(argument, x.dtype, "the dtype of x");
    on_device(argument, x.device, "where x is");
    contiguous(argument);
}

void at_least_as_wide(const Named& argument, const Named& narrow) {
    const bool wider = argument.tensor.dtype == DType::float32 && bytes_of(narrow.tensor.dtype) == 2;
    if (!wider) same_dtype(argument, narrow);
    like_but_for_dtype(argument, narrow);
}

Named normalised(const TensorView& x, const std::optional<TensorView>& residual, const std::optional<TensorView>& sum) {
    if (residual.has_value() != sum.has_value()) throw ValueError("residual and sum must both be given, or neither");
    if (!residual) return {"x", x};
    at_least_as_wide({"residual", *residual}, {"x", x});
    like({"sum", *sum}, {"residual", *residual});
    return {"residual", *residual};
}

void parameter_of(const Named& argument, const Named& normalised, std::int64_t width) {
    const DType dtype = normalised.tensor.dtype;
    if (argument.tensor.dtype != DType::float32 && argument.tensor.dtype != dtype) {
        dtype_is(argument, dtype, text("the dtype of ", normalised.name, ", or float32").c_str());
    }
    same_device(argument, normalised);
    shape_is(argument, {width}, "the last dimension of x");
    contiguous(argument);
}

void statistics_of(const Named& argument, const TensorView& x, std::int64_t rows) {
    const DType dtype = x.dtype == DType::float64 ? DType::float64 : DType::float32;
    dtype_is(argument, dtype, "what statistics are kept in");
    on_device(argument, x.device, "where x is");
    shape_is(argument, {rows}, "one value a row of x");
    contiguous(argument);
}

void eps_is_valid(double eps) {
    if (!(eps >= 0)) throw ValueError(text("eps must be at least 0, but is ", eps));
}

}  // namespace pygpt::check
