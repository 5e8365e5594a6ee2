// The checks that linear, feed_forward and linear_cross_entropy share: operands of a matrix product with the rows of x.
#ifndef PYGPT_OPS_PRODUCT_CHECK_H
#define PYGPT_OPS_PRODUCT_CHECK_H

#include "ops/check.h"

namespace pygpt::check {

struct ProductSizes {
    std::int64_t M, N, K;
};

// x (..., K) and weight (N, K), contiguous; weight of x's dtype, or float32 where x is 16-bit.
ProductSizes product_sizes(const Named& x, const Named& weight);

// (..., N), contiguous, where x is (..., K) and lies; of x's dtype, or float32 where `or_float32`.
void product_rows(const Named& argument, const Named& x, std::int64_t N, bool or_float32);

// (N,), contiguous, of x's dtype or float32.
void product_bias(const Named& argument, const Named& x, std::int64_t N);

// The packed copy of weight (N, K) in x's dtype; on the CPU alone.
void packed_weight(const Named& argument, const Named& x, std::int64_t N, std::int64_t K);

}  // namespace pygpt::check

#endif
