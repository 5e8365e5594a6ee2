// What happens to the sums of a product (Epilogue, product.h), as one thread does it for a few neighbours of a row.
#ifndef PYGPT_CUDA_MATMUL_EPILOGUE_CUH
#define PYGPT_CUDA_MATMUL_EPILOGUE_CUH

#include <cstdint>

#include "cuda/matmul/activation.cuh"
#include "cuda/matmul/product.h"
#include "cuda/tiles/pack.cuh"

namespace pygpt::cuda {

// Whether all of an epilogue's rows of N elements are made of whole packs of `count`.
inline bool in_packs(const Epilogue& e, int count, std::int64_t N) {
    return e.pitch % count == 0 &&
           in_packs(count, N, {e.bias.data, e.pre_activation, e.slope_at, e.activated, e.residual.data, e.out.data});
}

template <bool packs, int count, class Storage>
__device__ Floats<count> load_either(const Either& from, std::int64_t at, std::int64_t left) {
    if (from.float32) return load<packs, count>(static_cast<const float*>(from.data) + at, left);
    return load<packs, count>(static_cast<const Storage*>(from.data) + at, left);
}

template <bool packs, class Storage, int count>
__device__ void store_either(const Either& to, std::int64_t at, const Floats<count>& x, std::int64_t left) {
    if (to.float32) {
        store<packs, count>(static_cast<float*>(to.data) + at, x, left);
    } else {
        store<packs, count>(static_cast<Storage*>(to.data) + at, x, left);
    }
}

// Of `count` columns from `column` on, of which `left` exist; zeros where there is no bias.
template <bool packs, int count, class Storage>
__device__ Floats<count> bias_of(const Epilogue& e, std::int64_t column, std::int64_t left) {
    return e.bias.data ? load_either<packs, count, Storage>(e.bias, column, left) : Floats<count>{};
}

// Takes the sums x of neighbours, whose place in the epilogue's rows is `at`; the result's, out + part.
template <Precision precision, bool packs, class Storage, int count>
__device__ void finish_together(const Epilogue& e, std::int64_t part, std::int64_t at, std::int64_t left,
                                const Floats<count>& bias, Floats<count> x) {
    if (e.bias.data) {
        for (int i = 0; i < count; ++i) x.value[i] += bias.value[i];
    }
    if (e.pre_activation) store<packs, count>(static_cast<Storage*>(e.pre_activation) + at, x, left);
    if (e.slope_at) {
        Floats<count> z = load<packs, count>(static_cast<const Storage*>(e.slope_at) + at, left);
        for (int i = 0; i < count; ++i) {
            const Activated there = activate_with_slope<precision>(e.activation, z.value[i]);
            x.value[i] *= there.slope;
            z.value[i] = there.value;
        }
        if (e.activated) store<packs, count>(static_cast<Storage*>(e.activated) + at, z, left);
    } else if (e.activation != Activation::none) {
        for (int i = 0; i < count; ++i) x.value[i] = activate<precision>(e.activation, x.value[i]);
    }
    if (e.residual.data) {
        const Floats<count> more = load_either<packs, count, Storage>(e.residual, at, left);
        for (int i = 0; i < count; ++i) x.value[i] = __fadd_rn(x.value[i], more.value[i]);
    }
    store_either<packs, Storage>(e.out, part + at, x, left);
}

}  // namespace pygpt::cuda

#endif
