// Asynchronous copies from global to shared memory: issued, closed into groups, waited for by group.
//
// PTX ISA, "Data Movement and Conversion Instructions: cp.async", "cp.async.commit_group", "cp.async.wait_group";
// sm_80 and up. A wait tells the waiting thread of its own copies only: a barrier must follow before others read them.
#ifndef PYGPT_CUDA_PTX_CP_ASYNC_CUH
#define PYGPT_CUDA_PTX_CP_ASYNC_CUH

#include <cstdint>

namespace pygpt::cuda::ptx {

// cp.async.cg of 16 bytes, past the L1 cache. Both addresses are multiples of 16. Without `exists` zeros are written,
// and `from` is not read.
__device__ inline void cp_async(std::uint32_t to_shared, const void* from, bool exists) {
    const int source_bytes = exists ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to_shared), "l"(from), "r"(source_bytes)
                 : "memory");
}

// cp.async.commit_group: closes this thread's copies since the last one into a group, which may be empty.
__device__ inline void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// cp.async.wait_group: until at most `pending` of this thread's youngest groups are on their way.
template <int pending>
__device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace pygpt::cuda::ptx

#endif
