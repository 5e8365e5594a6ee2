// linear, forward and backward: three matrix products and what is fused to them.
//
// Forward:   out = activation(x · weightᵀ + bias) + residual      (M, K) · (K, N) -> (M, N)
// Backward:  g = grad_out · activation'(pre_activation)           (M, N)
//            grad_x = g · weight                                  (M, N) · (N, K) -> (M, K)
//            grad_weight = gᵀ · x                                 (N, M) · (M, K) -> (N, K)
//            grad_bias = Σ_rows g                                 (N,)
//
// No operand is transposed in memory: the packing of the product (gemm.h) reads rows or columns. g is written once
// where it is not grad_out itself, since both products read it; its sum is taken in the same pass. The floor is 2·M·N·K
// operations a product.
#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/kernels/linear_parts.h"
#include "cpu/kernels/rows.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

template <class Storage>
void forward_typed(const linear::Forward& a) {
    will_write(a.out);
    will_write(a.pre_activation);
    const Epilogue<Storage> epilogue{
        .N = a.N,
        .bias = Either<Storage>(a.bias),
        .activation = a.activation,
        .residual = Either<Storage>(a.residual),
        .out = Either<Storage>(a.out),
        .pre_activation = a.pre_activation ? static_cast<Storage*>(a.pre_activation->data) : nullptr,
    };
    with_weight<Storage>(a.weight, false, [&](auto weight) {
        product(rows_of(static_cast<const Storage*>(a.x.data), a.K), weight, packed_data<Storage>(a.packed_weight), a.M,
                a.N, a.K, epilogue);
    });
}

template <class Storage>
void backward_typed(const linear::Backward& a) {
    using V = Vec<compute_t<Storage>>;
    const bool as_it_is = a.activation == Activation::none && a.grad_out.dtype == a.x.dtype;
    const Scratch scratch(as_it_is ? 0 : static_cast<std::size_t>(a.M * a.N) * sizeof(Storage));
    auto* const written = static_cast<Storage*>(as_it_is ? nullptr : scratch.data());
    const Storage* const g = as_it_is ? static_cast<const Storage*>(a.grad_out.data) : written;
    const Either<Storage> grad_out(a.grad_out);
    const Either<Storage> grad_bias(a.grad_bias);
    const auto* pre_activation = a.pre_activation ? static_cast<const Storage*>(a.pre_activation->data) : nullptr;
    const auto gradient = [&](std::int64_t row, std::int64_t column, std::int64_t count) {
        const std::int64_t at = row * a.N + column;
        V value = grad_out.load(at, count);
        if (a.activation != Activation::none) {
            value = value * activate_with_slope(a.activation, load_some<V>(pre_activation + at, count)).slope;
        }
        if (written) store_some(value, written + at, count);
        return value;
    };
    if (written || grad_bias) sum_rows(a.M, a.N, gradient, grad_bias);

    if (a.grad_x) {
        will_write(a.grad_x);
        with_weight<Storage>(a.weight, true, [&](auto weight) {
            product(rows_of(g, a.N), weight, nullptr, a.M, a.K, a.N,
                    Epilogue<Storage>{.N = a.K, .out = Either<Storage>(a.grad_x)});
        });
    }
    if (a.grad_weight) {
        const WeightGradient<Storage> grad_weight(a.grad_weight, 1);
        product(columns_of(g, a.N), columns_of(static_cast<const Storage*>(a.x.data), a.K), nullptr, a.N, a.K, a.M,
                grad_weight.part(0));
    }
}

template <class Storage>
void pack_typed(const linear::Pack& a) {
    using Packed = typename Arithmetic<Storage>::Right::type;
    const std::int64_t K = a.weight.shape[1];
    will_write(a.packed_weight);
    pack_right<Storage>(rows_of(static_cast<const Storage*>(a.weight.data), K), a.weight.shape[0], K,
                        static_cast<Packed*>(a.packed_weight.data));
}

}  // namespace

template <>
void linear_forward<this_isa>(const linear::Forward& a) {
    with_storage(a.x.dtype, [&](auto storage) { forward_typed<decltype(storage)>(a); });
}

template <>
void linear_backward<this_isa>(const linear::Backward& a) {
    with_storage(a.x.dtype, [&](auto storage) { backward_typed<decltype(storage)>(a); });
}

template <>
void linear_pack<this_isa>(const linear::Pack& a) {
    with_storage(a.weight.dtype, [&](auto storage) { pack_typed<decltype(storage)>(a); });
}

}  // namespace pygpt::cpu
