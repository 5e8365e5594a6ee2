#include "ops/feed_forward.h"

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"
#include "ops/product_check.h"

namespace pygpt::feed_forward {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cuda_sm80_decode", cuda::refuses_decode<80>, cuda::feed_forward_decode},
    {"cuda_sm90", cuda::refuses_all_but_16_bit<90>, cuda::feed_forward_forward<90>},
    {"cuda_sm80", cuda::refuses<80>, cuda::feed_forward_forward<80>},
    {"cpu_avx512_bf16", cpu::refuses<Isa::avx512_bf16>, cpu::feed_forward_forward<Isa::avx512_bf16>},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::feed_forward_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::feed_forward_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::feed_forward_forward<Isa::scalar>},
};
const Implementation<Backward> backward_table[] = {
    {"cuda_sm80_decode", cuda::refuses_decode<80>, cuda::feed_forward_backward<80>},
    {"cuda_sm90", cuda::refuses_all_but_16_bit<90>, cuda::feed_forward_backward<90>},
    {"cuda_sm80", cuda::refuses<80>, cuda::feed_forward_backward<80>},
    {"cpu_avx512_bf16", cpu::refuses<Isa::avx512_bf16>, cpu::feed_forward_backward<Isa::avx512_bf16>},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::feed_forward_backward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::feed_forward_backward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::feed_forward_backward<Isa::scalar>},
};
Op op("feed_forward", forward_table);

template <class Arguments>
void set_sizes(Arguments& a) {
    const check::ProductSizes sizes = check::product_sizes({"x", a.x}, {"w_in", a.w_in});
    a.M = sizes.M;
    a.C = sizes.K;
    a.hidden = sizes.N;
    check::dimensions_are({"w_out", a.w_out}, 2, "(out, hidden)");
    a.N = a.w_out.shape[0];
    check::shape_is({"w_out", a.w_out}, {a.N, a.hidden}, "(out, the first dimension of w_in)");
    check::dtype_is({"w_out", a.w_out}, a.w_in.dtype, "the dtype of w_in");
    check::on_device({"w_out", a.w_out}, a.x.device, "where the input is");
    check::contiguous({"w_out", a.w_out});
}

}  // namespace

void forward(Forward arguments) {
    Forward& a = arguments;
    const check::Named x{"x", a.x};
    set_sizes(a);
    if (a.b_in) check::product_bias({"b_in", *a.b_in}, x, a.hidden);
    if (a.b_out) check::product_bias({"b_out", *a.b_out}, x, a.N);
    if (a.packed_w_in) check::packed_weight({"packed_w_in", *a.packed_w_in}, x, a.hidden, a.C);
    if (a.packed_w_out) check::packed_weight({"packed_w_out", *a.packed_w_out}, x, a.N, a.hidden);
    check::product_rows({"out", a.out}, x, a.N, false);
    if (a.pre_activation) check::product_rows({"pre_activation", *a.pre_activation}, x, a.hidden, false);
    op.run(forward_table, {a.x.dtype, a.x.device, a.decode}, a);
}

void backward(Backward arguments) {
    Backward& a = arguments;
    const check::Named x{"x", a.x};
    set_sizes(a);
    check::product_rows({"grad_out", a.grad_out}, x, a.N, false);
    check::product_rows({"pre_activation", a.pre_activation}, x, a.hidden, false);
    if (a.grad_x) check::like({"grad_x", *a.grad_x}, x);
    if (a.grad_w_in) check::like({"grad_w_in", *a.grad_w_in}, {"w_in", a.w_in});
    if (a.grad_b_in) check::product_bias({"grad_b_in", *a.grad_b_in}, x, a.hidden);
    if (a.grad_w_out) check::like({"grad_w_out", *a.grad_w_out}, {"w_out", a.w_out});
    if (a.grad_b_out) check::product_bias({"grad_b_out", *a.grad_b_out}, x, a.N);
    op.run(backward_table, {a.x.dtype, a.x.device}, a);
}

}  // namespace pygpt::feed_forward
