// Neighbouring elements of a tensor, as one thread moves them: in float32 between load and store, and in one access of
// up to 16 bytes where the addresses allow it. What a thread owns, and so the order of its sums, never depends on
// alignment; the number of accesses does.
#ifndef PYGPT_CUDA_TILES_PACK_CUH
#define PYGPT_CUDA_TILES_PACK_CUH

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "cuda/number.cuh"
#include "cuda/ptx/convert.cuh"

namespace pygpt::cuda {

constexpr int pack_bytes = 16;

// Elements of 16 bytes.
template <class Storage>
constexpr int pack_elements = pack_bytes / static_cast<int>(sizeof(Storage));

template <int count>
struct Floats {
    float value[count];
};

// Elements as they lie in memory. They move as words of up to 16 bytes, by an intrinsic where they are stored: the
// compiler takes assignments of structs apart.
template <class Storage, int count>
struct Pack {
    static constexpr int bytes = static_cast<int>(sizeof(Storage)) * count;
    using Word = std::conditional_t<bytes % 16 == 0, uint4, std::conditional_t<bytes == 8, uint2, unsigned>>;
    alignas(Word) Storage value[count];

    __device__ static Pack from(const Storage* memory) {
        Pack out;
#pragma unroll
        for (int i = 0; i < bytes / static_cast<int>(sizeof(Word)); ++i) {
            reinterpret_cast<Word*>(out.value)[i] = reinterpret_cast<const Word*>(memory)[i];
        }
        return out;
    }
    // Rounded.
    __device__ static Pack of(const Floats<count>& x) {
        Pack out;
        if constexpr (sizeof(Storage) == 2) {
#pragma unroll
            for (int i = 0; i < count; i += 2) {
                const unsigned pair = ptx::pack_pair<Storage>(x.value[i], x.value[i + 1]);
                memcpy(out.value + i, &pair, sizeof(pair));
            }
        } else {
#pragma unroll
            for (int i = 0; i < count; ++i) out.value[i] = x.value[i];
        }
        return out;
    }
    // The first `left` elements, the others 0: one by one, wherever they lie.
    __device__ static Pack of_first(std::int64_t left, const Storage* memory) {
        Pack out;
        if constexpr (sizeof(Storage) == 2) {
#pragma unroll
            for (int i = 0; i < count; i += 2) {
                const auto* const from = reinterpret_cast<const unsigned short*>(memory + i);
                unsigned pair = i < left ? from[0] : 0u;
                if (i + 1 < left) pair |= unsigned{from[1]} << 16;
                memcpy(out.value + i, &pair, sizeof(pair));
            }
        } else {
#pragma unroll
            for (int i = 0; i < count; ++i) out.value[i] = i < left ? memory[i] : 0.0f;
        }
        return out;
    }
    // By words: elements of 16 bits, each on its own, would take a register each.
    __device__ Floats<count> floats() const {
        Floats<count> out;
#pragma unroll
        for (int i = 0; i < count; i += 4 / static_cast<int>(sizeof(Storage))) {
            if constexpr (sizeof(Storage) == 4) {
                out.value[i] = value[i];
            } else {
                unsigned pair;
                memcpy(&pair, value + i, sizeof(pair));
                if constexpr (std::is_same_v<Storage, bf16>) {
                    out.value[i] = __uint_as_float(pair << 16);
                    out.value[i + 1] = __uint_as_float(pair & 0xffff0000u);
                } else {
                    __half2 halves;
                    memcpy(&halves, &pair, sizeof(pair));
                    const float2 both = __half22float2(halves);
                    out.value[i] = both.x;
                    out.value[i + 1] = both.y;
                }
            }
        }
        return out;
    }
    __device__ void write(Storage* memory) const {
#pragma unroll
        for (int i = 0; i < bytes / static_cast<int>(sizeof(Word)); ++i) {
            Word word;
            memcpy(&word, value + i * (count * static_cast<int>(sizeof(Word)) / bytes), sizeof(Word));
            __stwb(reinterpret_cast<Word*>(memory) + i, word);
        }
    }
};

// Whether rows of `width` elements, one after the other from each of these addresses, are made of whole packs of
// `count` elements at addresses that a Pack may have. Null, for a tensor that is absent, may.
inline bool in_packs(int count, std::int64_t width, std::initializer_list<const void*> addresses) {
    bool aligned = width % count == 0;
    for (const void* address : addresses) aligned &= reinterpret_cast<std::uintptr_t>(address) % pack_bytes == 0;
    return aligned;
}

// `count` elements from `from` on; those past the `left` that exist are 0. If `aligned`, all exist.
template <bool aligned, int count, class Storage>
__device__ Floats<count> load(const Storage* from, std::int64_t left) {
    if constexpr (aligned) {
        return Pack<Storage, count>::from(from).floats();
    } else {
        Floats<count> out;
#pragma unroll
        for (int i = 0; i < count; ++i) out.value[i] = i < left ? to_float(from[i]) : 0.0f;
        return out;
    }
}

// Writes those of the elements that exist.
template <bool aligned, int count, class Storage>
__device__ void store(Storage* to, const Floats<count>& x, std::int64_t left) {
    if constexpr (aligned) {
        Pack<Storage, count>::of(x).write(to);
    } else {
#pragma unroll
        for (int i = 0; i < count; ++i) {
            if (i < left) to[i] = from_float<Storage>(x.value[i]);
        }
    }
}

}  // namespace pygpt::cuda

#endif
