// Clusters of blocks that run at one time and reach one another's shared memory.
//
// PTX ISA, "Parallel Synchronization and Communication Instructions: barrier.cluster", "Data Movement and Conversion
// Instructions: mapa", "Special Registers: %cluster_ctarank"; sm_90.
#ifndef PYGPT_CUDA_PTX_CLUSTER_CUH
#define PYGPT_CUDA_PTX_CLUSTER_CUH

#include <cstdint>

#include "cuda/ptx/sm90a.cuh"

namespace pygpt::cuda::ptx {

// %cluster_ctarank: this block's place in its cluster.
__device__ inline int cluster_rank() {
    std::uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return static_cast<int>(rank);
}

// barrier.cluster.arrive.relaxed: of what this thread did before, those who wait see what it fenced, as barriers by
// mbarrier_init_fence().
__device__ inline void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
// barrier.cluster.wait.acquire: until all threads of the cluster have arrived. No block may end while another may still
// write to its shared memory or arrive at its barriers.
__device__ inline void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// mapa: the same place in the shared memory of block `rank` of the cluster.
__device__ inline std::uint32_t cluster_address(std::uint32_t shared_address, int rank) {
    std::uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address), "r"(rank));
    return address;
}

}  // namespace pygpt::cuda::ptx

#endif
