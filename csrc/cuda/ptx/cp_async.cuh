// Asynchronous copies from global to shared memory: issued, closed into groups, waited for by group.
//
// PTX ISA, "Data Movement and Conversion Instructions: cp.async", "cp.async.commit_group", "cp.async.wait_group";
// sm_80 and up. A wait tells the waiting thread of its own copies only: a barrier must follow before others read them.
#ifndef PYGPT_CUDA_PTX_CP_ASYNC_CUH
#define PYGPT_CUDA_PTX_CP_ASYNC_CUH

#include <cstdint>

namespace pygpt::cuda::ptx {

// cp.async of `bytes`: 4, 8, or 16, which go past the L1 cache. Both addresses are multiples of `bytes`. Without
// `exists` zeros are written, and `from` is not read.
template <int bytes>
__device__ inline void cp_async(std::uint32_t to_shared, const void* from, bool exists) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16);
    const int source_bytes = exists ? bytes : 0;
    if constexpr (bytes == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to_shared), "l"(from), "r"(source_bytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to_shared), "l"(from), "r"(source_bytes),
                     "n"(bytes)
                     : "memory");
    }
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
