#include "ops/gated_product.h"

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"

namespace pygpt::gated_product {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::gated_product_forward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::gated_product_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::gated_product_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::gated_product_forward<Isa::scalar>},
};
const Implementation<Backward> backward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::gated_product_backward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::gated_product_backward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::gated_product_backward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::gated_product_backward<Isa::scalar>},
};
Op op("gated_product", forward_table);

void two_factors(const TensorView& gate, const TensorView& up) {
    check::dtype_in({"gate", gate}, {DType::float32, DType::bfloat16, DType::float16, DType::float64});
    check::contiguous({"gate", gate});
    check::like({"up", up}, {"gate", gate});
}

}  // namespace

Gate gate_named(const std::string& name) {
    if (name == "silu") return Gate::silu;
    if (name == "gelu_tanh") return Gate::gelu_tanh;
    throw ValueError(text("activation must be \"silu\" or \"gelu_tanh\", but is \"", name, "\""));
}

void forward(Forward arguments) {
    const Forward& a = arguments;
    two_factors(a.gate, a.up);
    check::like({"out", a.out}, {"gate", a.gate});
    op.run(forward_table, {a.gate.dtype, a.gate.device}, a);
}

void backward(Backward arguments) {
    const Backward& a = arguments;
    two_factors(a.gate, a.up);
    check::like({"grad_out", a.grad_out}, {"gate", a.gate});
    check::like({"grad_gate", a.grad_gate}, {"gate", a.gate});
    check::like({"grad_up", a.grad_up}, {"gate", a.gate});
    op.run(backward_table, {a.gate.dtype, a.gate.device}, a);
}

}  // namespace pygpt::gated_product
