#include "ops/product_check.h"

#include <cstdint>

#include "ops/linear.h"

namespace pygpt::check {

ProductSizes product_sizes(const Named& x, const Named& weight) {
    dtype_in(x, {DType::float32, DType::bfloat16, DType::float16, DType::float64});
    if (x.tensor.dimensions == 0) throw ValueError(text(x.name, " must have a last dimension, but has shape ()"));
    contiguous(x);
    const std::int64_t K = x.tensor.shape[x.tensor.dimensions - 1];
    dimensions_are(weight, 2, "(out, in)");
    const std::int64_t N = weight.tensor.shape[0];
    shape_is(weight, {N, K}, "(out, the last dimension of the input)");
    const bool is_16_bit = x.tensor.dtype == DType::bfloat16 || x.tensor.dtype == DType::float16;
    if (!is_16_bit || weight.tensor.dtype != DType::float32) {
        dtype_is(weight, x.tensor.dtype, is_16_bit ? "the input's dtype, or float32" : "the input's dtype");
    }
    on_device(weight, x.tensor.device, "where the input is");
    contiguous(weight);
    std::int64_t M = 1;
    for (int i = 0; i + 1 < x.tensor.dimensions; ++i) M *= x.tensor.shape[i];
    return {M, N, K};
}

void product_rows(const Named& argument, const Named& x, std::int64_t N, bool or_float32) {
    TensorView expected = x.tensor;
    expected.shape[x.tensor.dimensions - 1] = N;
    if (!same_shape(argument.tensor, expected)) {
        throw ValueError(text(argument.name, " must have shape ", shape_text(expected), " (that of ", x.name,
                              " with another last dimension), but has ", shape_text(argument.tensor)));
    }
    if (!or_float32 || argument.tensor.dtype != DType::float32) {
        dtype_is(argument, x.tensor.dtype, or_float32 ? "the input's dtype, or float32" : "the input's dtype");
    }
    on_device(argument, x.tensor.device, "where the input is");
    contiguous(argument);
}

void product_bias(const Named& argument, const Named& x, std::int64_t N) {
    if (argument.tensor.dtype != DType::float32) {
        dtype_is(argument, x.tensor.dtype, "the input's dtype, or float32");
    }
    on_device(argument, x.tensor.device, "where the input is");
    shape_is(argument, {N}, "the first dimension of the weight");
    contiguous(argument);
}

void packed_weight(const Named& argument, const Named& x, std::int64_t N, std::int64_t K) {
    if (x.tensor.device.type != DeviceType::cpu) {
        throw ValueError(text(argument.name, " must be None where the tensors are on ", device_text(x.tensor.device),
                              ": packed weights are for the CPU"));
    }
    dtype_is(argument, DType::uint8, "a packed weight");
    on_device(argument, x.tensor.device, "where the input is");
    shape_is(argument, {linear::packed_bytes(N, K, x.tensor.dtype)},
             "the bytes of the weight, packed in the input's dtype");
    contiguous(argument);
    if (reinterpret_cast<std::uintptr_t>(argument.tensor.data) % alignof(double) != 0) {
        throw ValueError(text(argument.name, " must start at a multiple of ", alignof(double), " bytes"));
    }
}

}  // namespace pygpt::check
