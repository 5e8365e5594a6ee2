// Neighbouring elements of a tensor, as one thread moves them: in float32 between load and store, and in one access of
// up to 16 bytes where the addresses allow it. What a thread owns, and so the order of its sums, never depends on
// alignment; the number of accesses does.
#ifndef PYGPT_CUDA_TILES_PACK_CUH
#define PYGPT_CUDA_TILES_PACK_CUH

#include <cstdint>
#include <initializer_list>

#include "cuda/number.cuh"

namespace pygpt::cuda {

constexpr int pack_bytes = 16;

// Elements of 16 bytes.
template <class Storage>
constexpr int pack_elements = pack_bytes / static_cast<int>(sizeof(Storage));

template <class Storage, int count>
struct alignas(sizeof(Storage) * count < pack_bytes ? sizeof(Storage) * count : pack_bytes) Pack {
    Storage value[count];
};

// Whether rows of `width` elements, one after the other from each of these addresses, are made of whole packs of
// `count` elements at addresses that a Pack may have. Null, for a tensor that is absent, may.
inline bool in_packs(int count, std::int64_t width, std::initializer_list<const void*> addresses) {
    bool aligned = width % count == 0;
    for (const void* address : addresses) aligned &= reinterpret_cast<std::uintptr_t>(address) % pack_bytes == 0;
    return aligned;
}

template <int count>
struct Floats {
    float value[count];
};

// `count` elements from `from` on; those past the `left` that exist are 0. If `aligned`, all exist.
template <bool aligned, int count, class Storage>
__device__ Floats<count> load(const Storage* from, std::int64_t left) {
    Floats<count> out;
    if constexpr (aligned) {
        const auto pack = *reinterpret_cast<const Pack<Storage, count>*>(from);
#pragma unroll
        for (int i = 0; i < count; ++i) out.value[i] = to_float(pack.value[i]);
    } else {
#pragma unroll
        for (int i = 0; i < count; ++i) out.value[i] = i < left ? to_float(from[i]) : 0.0f;
    }
    return out;
}

// Writes those of the elements that exist.
template <bool aligned, int count, class Storage>
__device__ void store(Storage* to, const Floats<count>& x, std::int64_t left) {
    if constexpr (aligned) {
        Pack<Storage, count> pack;
#pragma unroll
        for (int i = 0; i < count; ++i) pack.value[i] = from_float<Storage>(x.value[i]);
        *reinterpret_cast<Pack<Storage, count>*>(to) = pack;
    } else {
#pragma unroll
        for (int i = 0; i < count; ++i) {
            if (i < left) to[i] = from_float<Storage>(x.value[i]);
        }
    }
}

}  // namespace pygpt::cuda

#endif
