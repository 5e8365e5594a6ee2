#include "ops/rms_norm.h"

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/implementation.h"
#include "ops/norm_check.h"

namespace pygpt::rms_norm {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::rms_norm_forward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::rms_norm_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::rms_norm_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::rms_norm_forward<Isa::scalar>},
};
const Implementation<Backward> backward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::rms_norm_backward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::rms_norm_backward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::rms_norm_backward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::rms_norm_backward<Isa::scalar>},
};
Op op("rms_norm", forward_table);

}  // namespace

void forward(Forward arguments) {
    Forward& a = arguments;
    std::tie(a.rows, a.width) = check::rows_and_width(a.x);
    const check::Named normalised = check::normalised(a.x, a.residual, a.sum);
    check::parameter_of({"weight", a.weight}, normalised, a.width);
    check::eps_is_valid(a.eps);
    check::like_x({"out", a.out}, a.x);
    if (a.rstd) check::statistics_of({"rstd", *a.rstd}, a.x, a.rows);
    op.run(forward_table, {a.x.dtype, a.x.device}, a);
}

void backward(Backward arguments) {
    Backward& a = arguments;
    std::tie(a.rows, a.width) = check::rows_and_width(a.x);
    check::contiguous({"grad_out", a.grad_out});
    check::at_least_as_wide({"x", a.x}, {"grad_out", a.grad_out});
    if (a.grad_sum) check::like_x({"grad_sum", *a.grad_sum}, a.x);
    check::parameter_of({"weight", a.weight}, {"x", a.x}, a.width);
    check::statistics_of({"rstd", a.rstd}, a.x, a.rows);
    check::like_x({"grad_x", a.grad_x}, a.x);
    if (a.grad_narrow) check::like({"grad_narrow", *a.grad_narrow}, {"grad_out", a.grad_out});
    if (a.grad_weight) check::like({"grad_weight", *a.grad_weight}, {"weight", a.weight});
    op.run(backward_table, {a.grad_out.dtype, a.x.device}, a);
}

}  // namespace pygpt::rms_norm
