// The addresses that instructions on shared memory take.
#ifndef PYGPT_CUDA_PTX_SHARED_ADDRESS_CUH
#define PYGPT_CUDA_PTX_SHARED_ADDRESS_CUH

#include <cstdint>

namespace pygpt::cuda::ptx {

// In the shared window, which the compiler works out once for a base and then adds to. sm_80 and up.
__device__ inline std::uint32_t shared_address(const void* p) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

}  // namespace pygpt::cuda::ptx

#endif
