// Barriers of some of a block's warps.
//
// PTX ISA, "Parallel Synchronization and Communication Instructions: bar"; sm_80 and up. `id` is 1 to 15 (0 is
// __syncthreads), `threads` a multiple of 32, the same at every arrival.
#ifndef PYGPT_CUDA_PTX_NAMED_BARRIER_CUH
#define PYGPT_CUDA_PTX_NAMED_BARRIER_CUH

namespace pygpt::cuda::ptx {

// bar.sync: arrives, and waits until `threads` have.
__device__ inline void barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// bar.arrive: arrives without waiting.
__device__ inline void barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace pygpt::cuda::ptx

#endif
