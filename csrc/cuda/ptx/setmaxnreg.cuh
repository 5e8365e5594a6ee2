// Registers that change hands between the warpgroups of a block.
//
// PTX ISA, "Miscellaneous Instructions: setmaxnreg"; sm_90a. All warps of a warpgroup execute it; a thread's
// `registers` are a multiple of 8 from 24 to 256. The kernel's number at its start must be known (__launch_bounds__),
// and the sum over the warpgroups must not be greater than that of the start.
#ifndef PYGPT_CUDA_PTX_SETMAXNREG_CUH
#define PYGPT_CUDA_PTX_SETMAXNREG_CUH

#include "cuda/ptx/sm90a.cuh"

namespace pygpt::cuda::ptx {

// setmaxnreg.dec: gives registers back.
template <int registers>
__device__ inline void setmaxnreg_dec() {
    static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// setmaxnreg.inc: waits until there are enough, and takes them.
template <int registers>
__device__ inline void setmaxnreg_inc() {
    static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

}  // namespace pygpt::cuda::ptx

#endif
