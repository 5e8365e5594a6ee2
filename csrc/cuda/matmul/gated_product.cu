// out = activation(gate) · up, and its gradients, element by element.
//
// Backward: grad_gate = grad_out · up · activation'(gate);  grad_up = grad_out · activation(gate)
//
// A thread owns a pack of neighbouring elements. The floors are reading and writing each element once.
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/matmul/activation.cuh"
#include "cuda/pointer.h"
#include "cuda/tiles/pack.cuh"

namespace pygpt::cuda {
namespace {

using gated_product::Gate;

constexpr int threads = 256;

// x·σ(x): σ from e^-|x|, so that nothing overflows and nothing cancels.
template <Precision precision>
__device__ Activated silu_with_slope(float x) {
    constexpr bool approximate = precision == Precision::of_16_bits;
    const float power = approximate ? ptx::exp2_approx(-log2_e * fabsf(x)) : expf(-fabsf(x));
    const float upper = approximate ? ptx::reciprocal_approx(1.0f + power) : 1.0f / (1.0f + power);
    const float lower = power * upper;
    const float gate = x < 0 ? lower : upper;
    return {x * gate, fmaf(x * lower, upper, gate)};
}

template <class Storage>
__device__ Activated gate_with_slope(Gate gate, float x) {
    constexpr Precision precision = sizeof(Storage) == 2 ? Precision::of_16_bits : Precision::of_32_bits;
    if (gate == Gate::silu) return silu_with_slope<precision>(x);
    return activate_with_slope<precision>(Activation::gelu_tanh, x);
}

template <class Storage, bool aligned>
__global__ void __launch_bounds__(threads)
    gated_product_forward_kernel(const Storage* gate, const Storage* up, Storage* out, std::int64_t elements,
                                 Gate activation) {
    constexpr int vector = pack_elements<Storage>;
    const std::int64_t i = (std::int64_t{blockIdx.x} * threads + threadIdx.x) * vector;
    if (i >= elements) return;
    auto product = load<aligned, vector>(gate + i, elements - i);
    const auto factor = load<aligned, vector>(up + i, elements - i);
#pragma unroll
    for (int j = 0; j < vector; ++j) {
        product.value[j] = __fmul_rn(gate_with_slope<Storage>(activation, product.value[j]).value, factor.value[j]);
    }
    store<aligned>(out + i, product, elements - i);
}

template <class Storage, bool aligned>
__global__ void __launch_bounds__(threads)
    gated_product_backward_kernel(const Storage* grad_out, const Storage* gate, const Storage* up, Storage* grad_gate,
                                  Storage* grad_up, std::int64_t elements, Gate activation) {
    constexpr int vector = pack_elements<Storage>;
    const std::int64_t i = (std::int64_t{blockIdx.x} * threads + threadIdx.x) * vector;
    if (i >= elements) return;
    auto of_gate = load<aligned, vector>(gate + i, elements - i);
    auto of_up = load<aligned, vector>(up + i, elements - i);
    const auto grad = load<aligned, vector>(grad_out + i, elements - i);
#pragma unroll
    for (int j = 0; j < vector; ++j) {
        const Activated activated = gate_with_slope<Storage>(activation, of_gate.value[j]);
        of_gate.value[j] = __fmul_rn(__fmul_rn(grad.value[j], of_up.value[j]), activated.slope);
        of_up.value[j] = __fmul_rn(grad.value[j], activated.value);
    }
    store<aligned>(grad_gate + i, of_gate, elements - i);
    store<aligned>(grad_up + i, of_up, elements - i);
}

// f(std::bool_constant<aligned>, the grid) for so many elements at these addresses.
template <class Storage, class F>
void with_grid(std::int64_t elements, std::initializer_list<const void*> addresses, F f) {
    constexpr int vector = pack_elements<Storage>;
    const Launch shape{.grid = static_cast<unsigned>(divide_up(elements, threads * vector)), .block = threads};
    if (in_packs(vector, elements, addresses)) return f(std::true_type{}, shape);
    f(std::false_type{}, shape);
}

}  // namespace

void gated_product_forward(const gated_product::Forward& a) {
    with_storage(a.gate.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        const std::int64_t count = elements(a.gate);
        with_grid<Storage>(count, {a.gate.data, a.up.data, a.out.data}, [&](auto aligned, const Launch& shape) {
            launch(gated_product_forward_kernel<Storage, decltype(aligned)::value>, shape, pointer<Storage>(a.gate),
                   pointer<Storage>(a.up), pointer<Storage>(a.out), count, a.activation);
        });
    });
}

void gated_product_backward(const gated_product::Backward& a) {
    with_storage(a.gate.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        const std::int64_t count = elements(a.gate);
        with_grid<Storage>(count, {a.grad_out.data, a.gate.data, a.up.data, a.grad_gate.data, a.grad_up.data},
                           [&](auto aligned, const Launch& shape) {
                               launch(gated_product_backward_kernel<Storage, decltype(aligned)::value>, shape,
                                      pointer<Storage>(a.grad_out), pointer<Storage>(a.gate), pointer<Storage>(a.up),
                                      pointer<Storage>(a.grad_gate), pointer<Storage>(a.grad_up), count, a.activation);
                           });
    });
}

}  // namespace pygpt::cuda
