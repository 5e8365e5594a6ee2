#include "ops/grad_norm.h"

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"

namespace pygpt::grad_norm {
namespace {

using cpu::Isa;

const Implementation<Forward> table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::grad_norm_forward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::grad_norm_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::grad_norm_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::grad_norm_forward<Isa::scalar>},
};
Op op("grad_norm", table);

}  // namespace

void forward(const Forward& a) {
    Operands operands{DType::float32, a.out.device};
    for (const TensorView& tensor : a.tensors) {
        const check::Named named{"tensors", tensor};
        check::dtype_in(named, {DType::float32, DType::bfloat16, DType::float16, DType::float64});
        check::on_device(named, a.out.device, "where the first is");
        check::contiguous(named);
        operands.dtype = check::joint_dtype(operands.dtype, named);
    }
    const DType result = operands.dtype == DType::float64 ? DType::float64 : DType::float32;
    check::dtype_is({"out", a.out}, result, "what the norm is computed in");
    check::shape_is({"out", a.out}, {}, "one norm");
    op.run(table, operands, a);
}

}  // namespace pygpt::grad_norm
