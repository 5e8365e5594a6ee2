#include "ops/embedding.h"

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"

namespace pygpt::embedding {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::embedding_forward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::embedding_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::embedding_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::embedding_forward<Isa::scalar>},
};
const Implementation<Backward> backward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::embedding_backward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::embedding_backward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::embedding_backward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::embedding_backward<Isa::scalar>},
};
Op op("embedding", forward_table);

// `rows` is ids with the table's width as a further dimension.
void looked_up(const check::Named& rows, const TensorView& ids, const check::Named& table) {
    check::dtype_in(table, {DType::float32, DType::bfloat16, DType::float16, DType::float64});
    check::dimensions_are(table, 2, "(vocabulary, width)");
    check::contiguous(table);
    check::dtype_is({"ids", ids}, DType::int64, "row numbers of the table");
    check::on_device({"ids", ids}, table.tensor.device, "where the table is");
    check::contiguous({"ids", ids});
    check::dtype_is(rows, table.tensor.dtype, "the dtype of the table");
    check::on_device(rows, table.tensor.device, "where the table is");
    check::contiguous(rows);
    TensorView expected = ids;
    if (ids.dimensions == max_dimensions) {
        throw ValueError(text("ids must have at most ", max_dimensions - 1, " dimensions, but has ", max_dimensions));
    }
    expected.shape[expected.dimensions++] = table.tensor.shape[1];
    if (!same_shape(rows.tensor, expected)) {
        throw ValueError(text(rows.name, " must have shape ", shape_text(expected),
                              " (ids and the table's width), but has ", shape_text(rows.tensor)));
    }
    check::indices_in({"ids", ids}, table.tensor.shape[0], std::nullopt, "the table's number of rows");
}

}  // namespace

void forward(Forward arguments) {
    Forward& a = arguments;
    looked_up({"out", a.out}, a.ids, {"table", a.table});
    a.rows = elements(a.ids);
    a.width = a.table.shape[1];
    op.run(forward_table, {a.table.dtype, a.table.device}, a);
}

void backward(Backward arguments) {
    Backward& a = arguments;
    looked_up({"grad_out", a.grad_out}, a.ids, {"grad_table", a.grad_table});
    a.rows = elements(a.ids);
    a.vocabulary = a.grad_table.shape[0];
    a.width = a.grad_table.shape[1];
    op.run(backward_table, {a.grad_table.dtype, a.grad_table.device}, a);
}

}  // namespace pygpt::embedding
