// Bulk copies between global and shared memory by the copy engine (TMA): one thread starts them.
//
// PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy", "cp.async.bulk", "cp.async.bulk.tensor",
// "cp.async.bulk.prefetch.tensor", "cp.reduce.async.bulk", "cp.reduce.async.bulk.tensor", "cp.async.bulk.commit_group",
// "cp.async.bulk.wait_group", "prefetch"; sm_90. A tensor copy moves a box of a tensor that a map describes
// (cuda/tensor_map.h): a const __grid_constant__ parameter of the kernel, or part of one. The coordinates of the box's
// first element come innermost first; what lies outside of the tensor is read as zeros, and not written. The shared
// memory begins at a multiple of 128 bytes; under the 128-byte swizzle of 1024.
//
// Loads count their bytes at an mbarrier (mbarrier.cuh). Stores read what was fenced (proxy_fence.cuh) and go into
// groups of the thread that started them, which it waits for.
#ifndef PYGPT_CUDA_PTX_TMA_CUH
#define PYGPT_CUDA_PTX_TMA_CUH

#include <cuda.h>

#include <cstdint>

#include "cuda/ptx/sm90a.cuh"

namespace pygpt::cuda::ptx {

// prefetch.tensormap: hides the first copy's fetch of its map.
__device__ inline void tma_prefetch(const CUtensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// cp.async.bulk.tensor.*d.shared::cluster.global: a box to this block's shared memory.
template <int dimensions>
__device__ inline void tma_load(std::uint32_t to_shared, const CUtensorMap& map, const int (&at)[dimensions],
                                std::uint32_t barrier) {
    static_assert(dimensions >= 2 && dimensions <= 5);
    if constexpr (dimensions == 2) {
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
            "[%2];" ::"r"(to_shared),
            "l"(&map), "r"(barrier), "r"(at[0]), "r"(at[1])
            : "memory");
    } else if constexpr (dimensions == 3) {
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
            "%5}], [%2];" ::"r"(to_shared),
            "l"(&map), "r"(barrier), "r"(at[0]), "r"(at[1]), "r"(at[2])
            : "memory");
    } else if constexpr (dimensions == 4) {
        asm volatile(
            "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
            "%5, %6}], [%2];" ::"r"(to_shared),
            "l"(&map), "r"(barrier), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
            : "memory");
    } else {
        asm volatile(
            "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
            "%5, %6, %7}], [%2];" ::"r"(to_shared),
            "l"(&map), "r"(barrier), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
            : "memory");
    }
}

// cp.async.bulk.tensor.*d.shared::cluster.global.multicast::cluster: the box to the same place in the shared memory of
// each block of the cluster whose bit stands in `blocks`, each counting at its barrier of the same place.
template <int dimensions>
__device__ inline void tma_load_multicast(std::uint32_t to_shared, const CUtensorMap& map, const int (&at)[dimensions],
                                          std::uint32_t barrier, std::uint16_t blocks) {
    static_assert(dimensions >= 2 && dimensions <= 5);
    if constexpr (dimensions == 2) {
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
            "[%0], [%1, {%4, %5}], [%2], %3;" ::"r"(to_shared),
            "l"(&map), "r"(barrier), "h"(blocks), "r"(at[0]), "r"(at[1])
            : "memory");
    } else if constexpr (dimensions == 3) {
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
            "[%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(to_shared),
            "l"(&map), "r"(barrier), "h"(blocks), "r"(at[0]), "r"(at[1]), "r"(at[2])
            : "memory");
    } else if constexpr (dimensions == 4) {
        asm volatile(
            "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
            "[%0], [%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(to_shared),
            "l"(&map), "r"(barrier), "h"(blocks), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
            : "memory");
    } else {
        asm volatile(
            "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
            "[%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;" ::"r"(to_shared),
            "l"(&map), "r"(barrier), "h"(blocks), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
            : "memory");
    }
}

// cp.async.bulk.prefetch.tensor.3d.L2.global: a box to L2, for a load to come.
__device__ inline void tma_prefetch(const CUtensorMap& map, const int (&at)[3]) {
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(&map), "r"(at[0]),
                 "r"(at[1]), "r"(at[2])
                 : "memory");
}

// cp.async.bulk.tensor.*d.global.shared::cta: a box from shared memory.
template <int dimensions>
__device__ inline void tma_store(const CUtensorMap& map, const int (&at)[dimensions], std::uint32_t from_shared) {
    static_assert(dimensions >= 2 && dimensions <= 5);
    if constexpr (dimensions == 2) {
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
                     "r"(from_shared), "r"(at[0]), "r"(at[1])
                     : "memory");
    } else if constexpr (dimensions == 3) {
        asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
                     "r"(from_shared), "r"(at[0]), "r"(at[1]), "r"(at[2])
                     : "memory");
    } else if constexpr (dimensions == 4) {
        asm volatile(
            "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
            "r"(from_shared), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
            : "memory");
    } else {
        asm volatile(
            "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
            "r"(from_shared), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
            : "memory");
    }
}

// cp.async.bulk.shared::cluster.global: `bytes` in a row. Addresses and bytes are multiples of 16.
__device__ inline void bulk_load(std::uint32_t to_shared, const void* from, int bytes, std::uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to_shared),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

// cp.async.bulk.global.shared::cta: the other way.
__device__ inline void bulk_store(void* to, std::uint32_t from_shared, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from_shared), "r"(bytes)
                 : "memory");
}

// cp.reduce.async.bulk.global.shared::cta.add.f32: adds float32 numbers to those in global memory, each addition whole,
// in no order among those under way: wait with tma_wait<0>() before whoever adds next may begin.
__device__ inline void bulk_add(float* to, std::uint32_t from_shared, int bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
                 "r"(from_shared), "r"(bytes)
                 : "memory");
}

// cp.reduce.async.bulk.tensor.*d.global.shared::cta.add: the same of a box, in the map's type.
template <int dimensions>
__device__ inline void tma_add(const CUtensorMap& map, const int (&at)[dimensions], std::uint32_t from_shared) {
    static_assert(dimensions >= 2 && dimensions <= 3);
    if constexpr (dimensions == 2) {
        asm volatile(
            "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
            "r"(from_shared), "r"(at[0]), "r"(at[1])
            : "memory");
    } else {
        asm volatile(
            "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
                &map),
            "r"(from_shared), "r"(at[0]), "r"(at[1]), "r"(at[2])
            : "memory");
    }
}

// cp.async.bulk.commit_group: closes this thread's stores since the last one into a group.
__device__ inline void tma_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// cp.async.bulk.wait_group.read: until all but the `pending` youngest groups have read their shared memory, which may
// be written again then.
template <int pending>
__device__ inline void tma_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

// cp.async.bulk.wait_group: until all but the `pending` youngest groups have written global memory too.
template <int pending>
__device__ inline void tma_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace pygpt::cuda::ptx

#endif
