#include "ops/quantized_linear.h"

#include "cpu/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"
#include "ops/product_check.h"

namespace pygpt::quantized_linear {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cpu_avx512_vnni", cpu::refuses<Isa::avx512_vnni>, cpu::quantized_linear_forward<Isa::avx512_vnni>},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::quantized_linear_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::quantized_linear_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::quantized_linear_forward<Isa::scalar>},
};
Op op("quantized_linear", forward_table);

}  // namespace

Scheme scheme_named(const std::string& name) {
    if (name == "int8") return Scheme::int8;
    if (name == "int4") return Scheme::int4;
    throw ValueError(text("scheme must be 'int8' or 'int4', not '", name, "'"));
}

std::int64_t packed_bytes(std::int64_t N, std::int64_t K, Scheme scheme) {
    const std::int64_t panels = (N + panel_columns - 1) / panel_columns;
    const std::int64_t groups = (K + group_places - 1) / group_places;
    const std::int64_t numbers = panel_columns * group_places;
    return scheme == Scheme::int8 ? panels * (4 * panel_columns + groups * numbers)
                                  : panels * groups * (2 * 2 * panel_columns + numbers / 2);
}

void forward(Forward arguments) {
    Forward& a = arguments;
    const check::Named x{"x", a.x};
    check::dtype_in(x, {DType::float32, DType::bfloat16});
    if (a.x.dimensions == 0) throw ValueError("x must have a last dimension, but has shape ()");
    if (a.out.dimensions == 0) throw ValueError("out must have a last dimension, but has shape ()");
    check::contiguous(x);
    a.K = a.x.shape[a.x.dimensions - 1];
    a.N = a.out.shape[a.out.dimensions - 1];
    a.M = 1;
    for (int i = 0; i + 1 < a.x.dimensions; ++i) a.M *= a.x.shape[i];
    const check::Named weight{"weight", a.weight};
    check::dtype_is(weight, DType::uint8, "a packed weight");
    check::on_device(weight, a.x.device, "where the input is");
    check::shape_is(weight, {packed_bytes(a.N, a.K, a.scheme)}, "the bytes of the packed weight");
    check::contiguous(weight);
    if (a.bias) check::product_bias({"bias", *a.bias}, x, a.N);
    check::product_rows({"out", a.out}, x, a.N, true);
    if (a.residual) {
        check::product_rows({"residual", *a.residual}, x, a.N, true);
        check::dtype_is({"residual", *a.residual}, a.out.dtype, "the dtype of the result");
    }
    op.run(forward_table, {a.x.dtype, a.x.device}, a);
}

}  // namespace pygpt::quantized_linear
