#include "ops/linear.h"

#include "cpu/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"

namespace pygpt::linear {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::linear_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::linear_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::linear_forward<Isa::scalar>},
};
const Implementation<Backward> backward_table[] = {
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::linear_backward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::linear_backward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::linear_backward<Isa::scalar>},
};
const Implementation<Pack> pack_table[] = {
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::linear_pack<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::linear_pack<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::linear_pack<Isa::scalar>},
};
Op op("linear", forward_table);

// Sets M, N and K from x and weight.
template <class Arguments>
void sizes(Arguments& a) {
    check::dtype_in({"x", a.x}, {DType::float32, DType::bfloat16, DType::float16, DType::float64});
    if (a.x.dimensions == 0) throw ValueError("x must have a last dimension, but has shape ()");
    check::contiguous({"x", a.x});
    a.K = a.x.shape[a.x.dimensions - 1];
    check::dimensions_are({"weight", a.weight}, 2, "(out, in)");
    a.N = a.weight.shape[0];
    check::shape_is({"weight", a.weight}, {a.N, a.K}, "(out, the last dimension of x)");
    check::dtype_is({"weight", a.weight}, a.x.dtype, "the dtype of x");
    check::on_device({"weight", a.weight}, a.x.device, "where x is");
    check::contiguous({"weight", a.weight});
    a.M = 1;
    for (int i = 0; i + 1 < a.x.dimensions; ++i) a.M *= a.x.shape[i];
}

// (..., N), contiguous, where x is (..., K) and lies; of x's dtype, or float32 if `or_float32`.
void like_out(const check::Named& argument, const TensorView& x, std::int64_t N, bool or_float32) {
    TensorView expected = x;
    expected.shape[x.dimensions - 1] = N;
    if (!same_shape(argument.tensor, expected)) {
        throw ValueError(text(argument.name, " must have shape ", shape_text(expected),
                              " (x's, with weight's first dimension last), but has ", shape_text(argument.tensor)));
    }
    if (!or_float32 || argument.tensor.dtype != DType::float32) {
        check::dtype_is(argument, x.dtype, or_float32 ? "the dtype of x, or float32" : "the dtype of x");
    }
    check::on_device(argument, x.device, "where x is");
    check::contiguous(argument);
}

void vector_of(const check::Named& argument, const TensorView& x, std::int64_t N) {
    if (argument.tensor.dtype != DType::float32) check::dtype_is(argument, x.dtype, "the dtype of x, or float32");
    check::on_device(argument, x.device, "where x is");
    check::shape_is(argument, {N}, "the first dimension of weight");
    check::contiguous(argument);
}

void packed_of(const check::Named& argument, const TensorView& weight) {
    check::dtype_is(argument, DType::uint8, "a packed weight");
    check::on_device(argument, weight.device, "where weight is");
    check::shape_is(argument, {packed_bytes(weight)}, "the bytes that weight takes packed");
    check::contiguous(argument);
    if (reinterpret_cast<std::uintptr_t>(argument.tensor.data) % alignof(double) != 0) {
        throw ValueError(text(argument.name, " must start at a multiple of ", alignof(double), " bytes"));
    }
}

}  // namespace

std::int64_t packed_bytes(const TensorView& weight) {
    check::dimensions_are({"weight", weight}, 2, "(out, in)");
    const std::int64_t columns = (weight.shape[0] + panel_columns - 1) / panel_columns * panel_columns;
    const std::int64_t places = weight.dtype == DType::bfloat16 ? (weight.shape[1] + 1) / 2 * 2 : weight.shape[1];
    return columns * places * bytes_of(weight.dtype);
}

void forward(Forward arguments) {
    Forward& a = arguments;
    sizes(a);
    if (a.packed_weight) packed_of({"packed_weight", *a.packed_weight}, a.weight);
    if (a.bias) vector_of({"bias", *a.bias}, a.x, a.N);
    like_out({"out", a.out}, a.x, a.N, true);
    if (a.residual) {
        like_out({"residual", *a.residual}, a.x, a.N, true);
        check::dtype_is({"residual", *a.residual}, a.out.dtype, "the dtype of the result");
    }
    if (a.pre_activation) like_out({"pre_activation", *a.pre_activation}, a.x, a.N, false);
    op.run(forward_table, {a.x.dtype, a.x.device}, a);
}

void backward(Backward arguments) {
    Backward& a = arguments;
    sizes(a);
    like_out({"grad_out", a.grad_out}, a.x, a.N, true);
    if (a.activation != Activation::none && !a.pre_activation) {
        throw ValueError("pre_activation must be given where there is an activation");
    }
    if (a.pre_activation) like_out({"pre_activation", *a.pre_activation}, a.x, a.N, false);
    if (a.grad_x) like_out({"grad_x", *a.grad_x}, a.x, a.K, false);
    if (a.grad_weight) {
        check::shape_is({"grad_weight", *a.grad_weight}, {a.N, a.K}, "the shape of weight");
        check::dtype_is({"grad_weight", *a.grad_weight}, a.weight.dtype, "the dtype of weight");
        check::on_device({"grad_weight", *a.grad_weight}, a.x.device, "where x is");
        check::contiguous({"grad_weight", *a.grad_weight});
    }
    if (a.grad_bias) vector_of({"grad_bias", *a.grad_bias}, a.x, a.N);
    op.run(backward_table, {a.x.dtype, a.x.device}, a);
}

void pack(Pack arguments) {
    Pack& a = arguments;
    check::dtype_in({"weight", a.weight}, {DType::float32, DType::bfloat16, DType::float64});
    check::dimensions_are({"weight", a.weight}, 2, "(out, in)");
    check::contiguous({"weight", a.weight});
    packed_of({"packed_weight", a.packed_weight}, a.weight);
    op.run(pack_table, {a.weight.dtype, a.weight.device}, a);
}

}  // namespace pygpt::linear
