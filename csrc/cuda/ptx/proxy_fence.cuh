// Order between ordinary accesses and those of the asynchronous proxy (bulk copies, wgmma's reads of shared memory).
//
// PTX ISA, "Memory Consistency Model: Proxies", "Parallel Synchronization and Communication Instructions: membar,
// fence"; sm_90. Barriers do not bridge proxies. What a copy has written is seen by ordinary reads after the wait for
// its mbarrier or its group, without a fence.
#ifndef PYGPT_CUDA_PTX_PROXY_FENCE_CUH
#define PYGPT_CUDA_PTX_PROXY_FENCE_CUH

#include "cuda/ptx/sm90a.cuh"

namespace pygpt::cuda::ptx {

// fence.proxy.async.shared::cta: what this thread wrote to shared memory is seen by copies and wgmma that are issued
// after it, by whoever learns of it through a barrier.
__device__ inline void fence_async_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// fence.proxy.async.global: the same of global memory.
__device__ inline void fence_async_global() {
    asm volatile("fence.proxy.async.global;" ::: "memory");
}

}  // namespace pygpt::cuda::ptx

#endif
