#include "ops/rotary.h"

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"

namespace pygpt::rotary {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::rotary_forward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::rotary_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::rotary_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::rotary_forward<Isa::scalar>},
};
Op op("rotary", forward_table);

}  // namespace

void forward(Forward arguments) {
    const Forward& a = arguments;
    check::dtype_in({"x", a.x}, {DType::float32, DType::bfloat16, DType::float16, DType::float64});
    check::dimensions_are({"x", a.x}, 4, "(batch, time, heads, head_dim)");
    const std::int64_t batch = a.x.shape[0], time = a.x.shape[1], head_dim = a.x.shape[3];
    if (head_dim % 2 != 0) throw ValueError(text("x must have an even head_dim, but has shape ", shape_text(a.x)));
    if (head_dim > 1 && a.x.strides[3] != 1 && elements(a.x) > 0)
        throw ValueError("x must have a last dimension of stride 1");
    check::dtype_is({"positions", a.positions}, DType::int64, "row numbers of the table");
    check::on_device({"positions", a.positions}, a.x.device, "where x is");
    check::contiguous({"positions", a.positions});
    if (a.positions.dimensions == 1) {
        check::shape_is({"positions", a.positions}, {time}, "x's time, or its batch and time");
    } else {
        check::shape_is({"positions", a.positions}, {batch, time}, "x's batch and time, or its time");
    }
    if (a.table.dtype != DType::float32) {
        check::dtype_is({"table", a.table}, a.x.dtype, "the dtype of x, or float32");
    }
    check::on_device({"table", a.table}, a.x.device, "where x is");
    check::dimensions_are({"table", a.table}, 2, "(positions, head_dim)");
    check::shape_is({"table", a.table}, {a.table.shape[0], head_dim}, "x's head_dim wide");
    check::contiguous({"table", a.table});
    check::indices_in({"positions", a.positions}, a.table.shape[0], std::nullopt, "the table's number of rows");
    check::like({"out", a.out}, {"x", a.x});
    op.run(forward_table, {a.x.dtype, a.x.device}, a);
}

}  // namespace pygpt::rotary
