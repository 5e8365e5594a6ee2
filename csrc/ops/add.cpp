#include "ops/add.h"

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"

namespace pygpt::add {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::add_forward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::add_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::add_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::add_forward<Isa::scalar>},
};
const Implementation<Backward> backward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::add_backward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::add_backward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::add_backward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::add_backward<Isa::scalar>},
};
Op op("add", forward_table);

// (repeats, width) of the whole and the part that is repeated in it.
std::pair<std::int64_t, std::int64_t> sizes(const check::Named& whole, const check::Named& part) {
    const TensorView& x = whole.tensor;
    const TensorView& y = part.tensor;
    check::dtype_in(whole, {DType::float32, DType::bfloat16, DType::float16, DType::float64});
    check::contiguous(whole);
    check::dtype_is(part, x.dtype, "the dtype of x");
    check::on_device(part, x.device, "where x is");
    check::contiguous(part);
    int leading = 0;  // of y: dimensions of size 1 that stand for those of x
    while (leading < y.dimensions && y.shape[leading] == 1) ++leading;
    bool fits = y.dimensions <= x.dimensions;
    for (int i = leading; fits && i < y.dimensions; ++i) fits = y.shape[i] == x.shape[x.dimensions - y.dimensions + i];
    if (!fits) {
        throw ValueError(text(part.name, " must have the shape of ", whole.name, ", ", shape_text(x),
                              ", or lack leading dimensions of it, but has ", shape_text(y)));
    }
    const std::int64_t width = elements(y);
    return {width == 0 ? 0 : elements(x) / width, width};
}

}  // namespace

void forward(Forward arguments) {
    Forward& a = arguments;
    std::tie(a.repeats, a.width) = sizes({"x", a.x}, {"y", a.y});
    check::like({"out", a.out}, {"x", a.x});
    op.run(forward_table, {a.x.dtype, a.x.device}, a);
}

void backward(Backward arguments) {
    Backward& a = arguments;
    std::tie(a.repeats, a.width) = sizes({"grad_out", a.grad_out}, {"grad_y", a.grad_y});
    op.run(backward_table, {a.grad_out.dtype, a.grad_out.device}, a);
}

}  // namespace pygpt::add
