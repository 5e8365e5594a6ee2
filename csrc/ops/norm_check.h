// The checks that layer_norm and rms_norm share.
#ifndef PYGPT_OPS_NORM_CHECK_H
#define PYGPT_OPS_NORM_CHECK_H

#include <optional>
#include <utility>

#include "ops/check.h"

namespace pygpt::check {

// (rows, width) of the tensor x that is normalised over its last dimension.
std::pair<std::int64_t, std::int64_t> rows_and_width(const TensorView& x);

void like_x(const Named& argument, const TensorView& x);
// The shape and device of `narrow`; its dtype, or float32 where that is 16-bit.
void at_least_as_wide(const Named& argument, const Named& narrow);
// What is normalised: x, or where there is a residual, which may be wider, their sum, by the residual's name.
Named normalised(const TensorView& x, const std::optional<TensorView>& residual, const std::optional<TensorView>& sum);
// (width,), of the dtype of what is normalised, or float32.
void parameter_of(const Named& argument, const Named& normalised, std::int64_t width);
// (rows,), of the dtype that x is computed in.
void statistics_of(const Named& argument, const TensorView& x, std::int64_t rows);
void eps_is_valid(double eps);

}  // namespace pygpt::check

#endif
