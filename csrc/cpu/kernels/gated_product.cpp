// out = activation(gate) · up, and its gradients, element by element.
//
// Backward: grad_gate = grad_out · up · activation'(gate);  grad_up = grad_out · activation(gate)
//
// Tasks are runs of elements. The floors are reading and writing each element once.
#include "cpu/kernels.h"
#include "cpu/kernels/activation.h"
#include "cpu/kernels/rows.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t elements_per_task = 4096;

// x·σ(x): σ from e^-|x|, so that nothing overflows and nothing cancels.
template <class T>
Activated<T> silu_with_slope(Vec<T> x) {
    const auto one = Vec<T>::broadcast(1);
    const Vec<T> power = exp(Vec<T>::zero() - abs(x));
    const Vec<T> upper = one / (one + power);
    const Vec<T> lower = power * upper;
    const Vec<T> gate = select_less(x, Vec<T>::zero(), lower, upper);
    return {x * gate, fma(x * lower, upper, gate)};
}

template <class T>
Activated<T> gate_with_slope(gated_product::Gate gate, Vec<T> x) {
    if (gate == gated_product::Gate::silu) return silu_with_slope(x);
    return activate_with_slope(Activation::gelu_tanh, x);
}

// f(first element, count) for each run.
template <class F>
void each_run(const TensorView& tensor, const F& f) {
    const std::int64_t total = elements(tensor);
    parallel_for((total + elements_per_task - 1) / elements_per_task, [&](std::int64_t task) {
        const std::int64_t first = task * elements_per_task;
        f(first, std::min(elements_per_task, total - first));
    });
}

}  // namespace

template <>
void gated_product_forward<this_isa>(const gated_product::Forward& a) {
    with_storage(a.gate.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        using V = Vec<compute_t<Storage>>;
        each_run(a.gate, [&](std::int64_t first, std::int64_t length) {
            const auto* gate = static_cast<const Storage*>(a.gate.data) + first;
            const auto* up = static_cast<const Storage*>(a.up.data) + first;
            auto* out = static_cast<Storage*>(a.out.data) + first;
            map_row<V>(
                length,
                [&](std::int64_t i, std::int64_t count) {
                    return gate_with_slope(a.activation, V::load(gate + i, count)).value * V::load(up + i, count);
                },
                [&](std::int64_t i, std::int64_t count, V product) { product.store(out + i, count); });
        });
    });
}

template <>
void gated_product_backward<this_isa>(const gated_product::Backward& a) {
    with_storage(a.gate.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        using V = Vec<compute_t<Storage>>;
        each_run(a.gate, [&](std::int64_t first, std::int64_t length) {
            const auto* gate = static_cast<const Storage*>(a.gate.data) + first;
            const auto* up = static_cast<const Storage*>(a.up.data) + first;
            const auto* grad_out = static_cast<const Storage*>(a.grad_out.data) + first;
            auto* grad_gate = static_cast<Storage*>(a.grad_gate.data) + first;
            auto* grad_up = static_cast<Storage*>(a.grad_up.data) + first;
            struct Gradients {
                V gate, up;
            };
            map_row<V>(
                length,
                [&](std::int64_t i, std::int64_t count) {
                    const auto [value, slope] = gate_with_slope(a.activation, V::load(gate + i, count));
                    const V grad = V::load(grad_out + i, count);
                    return Gradients{grad * V::load(up + i, count) * slope, grad * value};
                },
                [&](std::int64_t i, std::int64_t count, const Gradients& gradients) {
                    gradients.gate.store(grad_gate + i, count);
                    gradients.up.store(grad_up + i, count);
                });
        });
    });
}

}  // namespace pygpt::cpu
