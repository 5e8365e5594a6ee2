#include "ops/dropout.h"

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"

namespace pygpt::dropout {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::dropout_forward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::dropout_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::dropout_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::dropout_forward<Isa::scalar>},
};
Op op("dropout", forward_table);

}  // namespace

void forward(Forward arguments) {
    Forward& a = arguments;
    check::dtype_in({"x", a.x}, {DType::float32, DType::bfloat16, DType::float16, DType::float64});
    check::contiguous({"x", a.x});
    check::dtype_is({"seed", a.seed}, DType::int64, "a seed");
    check::shape_is({"seed", a.seed}, {}, "one seed");
    check::on_device({"seed", a.seed}, a.x.device, "where x is");
    if (!(a.p >= 0 && a.p <= 1)) throw ValueError(text("p must be at least 0 and at most 1, but is ", a.p));
    check::like({"out", a.out}, {"x", a.x});
    a.rows = a.x.dimensions < 2 ? 1 : a.x.shape[0];
    a.width = a.rows == 0 ? 0 : elements(a.x) / a.rows;
    op.run(forward_table, {a.x.dtype, a.x.device}, a);
}

}  // namespace pygpt::dropout
