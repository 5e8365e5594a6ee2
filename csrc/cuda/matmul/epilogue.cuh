// What happens to the sums of a product (Epilogue, product.h), as one thread does it for 4 neighbours of a row.
#ifndef PYGPT_CUDA_MATMUL_EPILOGUE_CUH
#define PYGPT_CUDA_MATMUL_EPILOGUE_CUH

#include <cstdint>

#include "cuda/matmul/activation.cuh"
#include "cuda/matmul/product.h"
#include "cuda/tiles/pack.cuh"

namespace pygpt::cuda {

// Whether all of an epilogue's rows of N elements are made of whole packs of 4.
inline bool in_packs(const Epilogue& e, std::int64_t N) {
    return e.pitch % 4 == 0 &&
           in_packs(4, N, {e.bias.data, e.pre_activation, e.slope_at, e.activated, e.residual.data, e.out.data});
}

template <bool packs, class Storage>
__device__ Floats<4> load_either(const Either& from, std::int64_t at, std::int64_t left) {
    if (from.float32) return load<packs, 4>(static_cast<const float*>(from.data) + at, left);
    return load<packs, 4>(static_cast<const Storage*>(from.data) + at, left);
}

template <bool packs, class Storage>
__device__ void store_either(const Either& to, std::int64_t at, const Floats<4>& x, std::int64_t left) {
    if (to.float32) {
        store<packs, 4>(static_cast<float*>(to.data) + at, x, left);
    } else {
        store<packs, 4>(static_cast<Storage*>(to.data) + at, x, left);
    }
}

// Of 4 columns from `column` on, of which `left` exist; zeros where there is no bias.
template <bool packs, class Storage>
__device__ Floats<4> bias_of(const Epilogue& e, std::int64_t column, std::int64_t left) {
    return e.bias.data ? load_either<packs, Storage>(e.bias, column, left) : Floats<4>{};
}

// Takes the sums x of 4 neighbours, whose place in the epilogue's rows is `at`; the result's, out + part.
template <bool packs, class Storage>
__device__ void finish_four(const Epilogue& e, std::int64_t part, std::int64_t at, std::int64_t left,
                            const Floats<4>& bias, Floats<4> x) {
    if (e.bias.data) {
        for (int i = 0; i < 4; ++i) x.value[i] += bias.value[i];
    }
    if (e.pre_activation) store<packs, 4>(static_cast<Storage*>(e.pre_activation) + at, x, left);
    if (e.slope_at) {
        Floats<4> z = load<packs, 4>(static_cast<const Storage*>(e.slope_at) + at, left);
        for (int i = 0; i < 4; ++i) {
            const Activated there = activate_with_slope(e.activation, z.value[i]);
            x.value[i] *= there.slope;
            z.value[i] = there.value;
        }
        if (e.activated) store<packs, 4>(static_cast<Storage*>(e.activated) + at, z, left);
    } else if (e.activation != Activation::none) {
        for (int i = 0; i < 4; ++i) x.value[i] = activate(e.activation, x.value[i]);
    }
    if (e.residual.data) {
        const Floats<4> more = load_either<packs, Storage>(e.residual, at, left);
        for (int i = 0; i < 4; ++i) x.value[i] += more.value[i];
    }
    store_either<packs, Storage>(e.out, part + at, x, left);
}

}  // namespace pygpt::cuda

#endif
