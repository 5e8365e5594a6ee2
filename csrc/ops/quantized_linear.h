// quantized_linear: out = activation(x · weightᵀ + bias) + residual over the last dimension, for a weight that is held
// in 8 or 4 bits. For sampling: there is no backward.
//
// A weight is a whole number q, a scale and an offset, all of which stand in the packed weight:
//
//   int8   weight[n, k] = scale[n] · (q - 128)             q from 1 to 255, scale in float32
//   int4   weight[n, k] = scale[n, k / 32] · q + offset[n, k / 32]      q from 0 to 15, scale and offset in float16
//
// x is rounded to whole numbers of 15 bits on the way, in groups of 32 places along K, each with a scale of its own:
// step = max |x| / 16256 over the group, places = round(x · (16256 / max |x|)), to nearest even. That is finer than
// bfloat16 for all values down to 1/64 of their group's largest, and sums of products of whole numbers are exact in 32
// bits: the float32 sums over the groups of a row, one after the other, are all else that is rounded. A group whose
// max |x| is below 2^-110 counts as zeros; one that holds a NaN or an infinity makes the row NaN.
#ifndef PYGPT_OPS_QUANTIZED_LINEAR_H
#define PYGPT_OPS_QUANTIZED_LINEAR_H

#include <optional>
#include <string>

#include "core/tensor_view.h"
#include "ops/activation.h"

namespace pygpt::quantized_linear {

enum class Scheme { int8, int4 };

Scheme scheme_named(const std::string& name);  // "int8" or "int4". Raises: ValueError

// All tensors contiguous. M = the product of all dimensions of x but the last, K = x's last, N = out's last.
struct Forward {
    TensorView x;       // (..., K), float32 or bfloat16
    TensorView weight;  // (packed_bytes(N, K, scheme),), uint8
    Scheme scheme;
    std::optional<TensorView> bias;  // (N,), x's dtype or float32
    Activation activation;
    std::optional<TensorView> residual;  // like out
    TensorView out;                      // (..., N), x's dtype or float32
    // set by the check
    std::int64_t M = 0;
    std::int64_t N = 0;
    std::int64_t K = 0;
};

// A packed weight is a sequence of panels of 32 columns (rows of weight), and these of groups of 32 places along K. Its
// layout depends on shape and scheme alone. Past N and K stand zeros: q = 128 in int8, scale and offset 0 in int4.
//
//   int8   panel: 32 float32, the columns' scales; then its groups. Group: q as (8, 32 columns, 4 places) bytes.
//   int4   panel: its groups. Group: 32 float16, the columns' scales; 32 float16, their offsets; then q as
//          (4, 32 columns, 4 places) bytes: place p of the group in the lower half of a byte, place p + 16 in the
//          upper.
constexpr std::int64_t panel_columns = 32;
constexpr std::int64_t group_places = 32;

std::int64_t packed_bytes(std::int64_t N, std::int64_t K, Scheme scheme);

void forward(Forward arguments);

}  // namespace pygpt::quantized_linear

#endif
