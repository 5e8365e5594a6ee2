#include "ops/linear.h"

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"
#include "ops/product_check.h"

namespace pygpt::linear {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cuda_sm80_decode", cuda::refuses_decode<80>, cuda::linear_decode},
    {"cuda_sm90", cuda::refuses_all_but_16_bit<90>, cuda::linear_forward<90>},
    {"cuda_sm80", cuda::refuses<80>, cuda::linear_forward<80>},
    {"cpu_avx512_bf16", cpu::refuses<Isa::avx512_bf16>, cpu::linear_forward<Isa::avx512_bf16>},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::linear_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::linear_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::linear_forward<Isa::scalar>},
};
const Implementation<Backward> backward_table[] = {
    {"cuda_sm80_decode", cuda::refuses_decode<80>, cuda::linear_backward<80>},
    {"cuda_sm90", cuda::refuses_all_but_16_bit<90>, cuda::linear_backward<90>},
    {"cuda_sm80", cuda::refuses<80>, cuda::linear_backward<80>},
    {"cpu_avx512_bf16", cpu::refuses<Isa::avx512_bf16>, cpu::linear_backward<Isa::avx512_bf16>},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::linear_backward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::linear_backward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::linear_backward<Isa::scalar>},
};
const Implementation<Pack> pack_table[] = {
    {"cpu_avx512_bf16", cpu::refuses<Isa::avx512_bf16>, cpu::linear_pack<Isa::avx512_bf16>},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::linear_pack<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::linear_pack<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::linear_pack<Isa::scalar>},
};
Op op("linear", forward_table);

template <class Arguments>
void set_sizes(Arguments& a) {
    const check::ProductSizes sizes = check::product_sizes({"x", a.x}, {"weight", a.weight});
    a.M = sizes.M;
    a.N = sizes.N;
    a.K = sizes.K;
}

}  // namespace

std::int64_t packed_bytes(std::int64_t N, std::int64_t K, DType dtype) {
    const std::int64_t columns = (N + panel_columns - 1) / panel_columns * panel_columns;
    const std::int64_t places = dtype == DType::bfloat16 ? (K + 1) / 2 * 2 : K;
    return columns * places * bytes_of(dtype);
}

void forward(Forward arguments) {
    Forward& a = arguments;
    const check::Named x{"x", a.x};
    set_sizes(a);
    if (a.packed_weight) check::packed_weight({"packed_weight", *a.packed_weight}, x, a.N, a.K);
    if (a.bias) check::product_bias({"bias", *a.bias}, x, a.N);
    check::product_rows({"out", a.out}, x, a.N, true);
    if (a.residual) {
        check::product_rows({"residual", *a.residual}, x, a.N, true);
        check::dtype_is({"residual", *a.residual}, a.out.dtype, "the dtype of the result");
    }
    if (a.pre_activation) check::product_rows({"pre_activation", *a.pre_activation}, x, a.N, false);
    op.run(forward_table, {a.x.dtype, a.x.device, a.decode}, a);
}

void backward(Backward arguments) {
    Backward& a = arguments;
    const check::Named x{"x", a.x};
    set_sizes(a);
    check::product_rows({"grad_out", a.grad_out}, x, a.N, true);
    if (a.activation != Activation::none && !a.pre_activation) {
        throw ValueError("pre_activation must be given where there is an activation");
    }
    if (a.pre_activation) check::product_rows({"pre_activation", *a.pre_activation}, x, a.N, false);
    if (a.grad_x) check::like({"grad_x", *a.grad_x}, x);
    if (a.grad_weight) check::like({"grad_weight", *a.grad_weight}, {"weight", a.weight});
    if (a.grad_bias) check::product_bias({"grad_bias", *a.grad_bias}, x, a.N);
    op.run(backward_table, {a.x.dtype, a.x.device}, a);
}

void pack(Pack arguments) {
    Pack& a = arguments;
    const check::Named weight{"weight", a.weight};
    check::dtype_in(weight, {DType::float32, DType::bfloat16, DType::float64});
    check::dimensions_are(weight, 2, "(out, in)");
    check::contiguous(weight);
    check::packed_weight({"packed_weight", a.packed_weight}, weight, a.weight.shape[0], a.weight.shape[1]);
    op.run(pack_table, {a.weight.dtype, a.weight.device}, a);
}

}  // namespace pygpt::linear
