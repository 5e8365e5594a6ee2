// Barriers in shared memory that count arrivals, and bytes that asynchronous copies deliver.
//
// PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier"; sm_90 (some forms sm_80). A barrier is
// 8 bytes at a multiple of 8; it is given by its address (shared_address.cuh). A phase completes when its arrivals have
// come and the bytes that it was told to expect have landed; the next phase begins by itself, for the same number of
// arrivals. Phases have the parities 0, 1, 0, ...
#ifndef PYGPT_CUDA_PTX_MBARRIER_CUH
#define PYGPT_CUDA_PTX_MBARRIER_CUH

#include <cstdint>

#include "cuda/ptx/sm90a.cuh"

namespace pygpt::cuda::ptx {

// mbarrier.init: by one thread. Others, and copies, may use the barrier after mbarrier_init_fence() by this thread and
// a barrier of the block (or of the cluster, if its other blocks use it).
__device__ inline void mbarrier_init(std::uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// fence.mbarrier_init.release.cluster: what this thread initialised is seen by the cluster and by asynchronous copies.
// PTX ISA, "membar, fence"; sm_90.
__device__ inline void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// mbarrier.arrive: one arrival. What this thread did before is seen by whoever waits for the phase.
__device__ inline void mbarrier_arrive(std::uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// mbarrier.arrive.expect_tx: one arrival, and the phase also waits for `bytes`. Stands before the copies that deliver
// them, which count whole boxes, the part outside of the tensor included.
__device__ inline void mbarrier_arrive_expect(std::uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// mbarrier.arrive at a barrier of any block of the cluster: an address from cluster_address() (cluster.cuh). It says
// that this thread's products and reads of shared memory are done; its stores other blocks need not see. (A release at
// the cluster's scope would wait until all its stores to global memory are seen: as long as a step of products.)
__device__ inline void mbarrier_arrive_cluster(std::uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// mbarrier.try_wait.parity: whether the phase of this parity has completed; may wait a while before it says no. Of a
// fresh barrier the phase before the first, parity 1, counts as completed.
__device__ inline bool mbarrier_try_wait(std::uint32_t barrier, unsigned parity) {
    std::uint32_t done;
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.b32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return done != 0;
}

// Until the phase of this parity has completed.
__device__ inline void mbarrier_wait(std::uint32_t barrier, unsigned parity) {
    while (!mbarrier_try_wait(barrier, parity)) {
    }
}

}  // namespace pygpt::cuda::ptx

#endif
