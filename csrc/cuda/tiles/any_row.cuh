// A row of elements that begins anywhere, read in packs of 16 bytes all the same: two aligned accesses hold a pack, and
// the shift between them is the same for the whole row. So who owns which elements does not depend on where they lie.
#ifndef PYGPT_CUDA_TILES_ANY_ROW_CUH
#define PYGPT_CUDA_TILES_ANY_ROW_CUH

#include "cuda/tiles/pack.cuh"

namespace pygpt::cuda {

template <class Storage>
struct AnyRow {
    static constexpr int vector = pack_elements<Storage>;
    static constexpr int element_bytes = static_cast<int>(sizeof(Storage));

    const Storage* first;
    std::int64_t before, after;  // elements that may be read: so many ahead of `first`, and so many from there on

    // Bytes from the last multiple of 16 to the row's beginning.
    __device__ int shift() const {
        return static_cast<int>(reinterpret_cast<std::uintptr_t>(first) % static_cast<unsigned>(pack_bytes));
    }

    // Whether pack() may read the `count` elements from i on, whole packs: what lies around them is read as well.
    __device__ bool readable(std::int64_t i, int count) const {
        const int skipped = shift() / element_bytes;
        return i + before >= skipped && i + count + (skipped > 0 ? vector - skipped : 0) <= after;
    }

    // The pack from element i on, a multiple of `vector`.
    __device__ Floats<vector> pack(std::int64_t i) const {
        const int bytes = shift();
        if (bytes == 0) return load<true, vector>(first + i, vector);
        const auto* const at = reinterpret_cast<const uint4*>(first + i - bytes / element_bytes);
        const uint4 low = at[0], high = at[1];
        unsigned words[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < 6; ++j) words[j] = bytes & 8 ? words[j + 2] : words[j];
#pragma unroll
        for (int j = 0; j < 5; ++j) words[j] = bytes & 4 ? words[j + 1] : words[j];
        Pack<Storage, vector> pack;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if constexpr (element_bytes < 4) words[j] = __funnelshift_r(words[j], words[j + 1], bytes % 4 * 8);
            memcpy(pack.value + j * vector / 4, &words[j], sizeof(unsigned));
        }
        return pack.floats();
    }
};

}  // namespace pygpt::cuda

#endif
