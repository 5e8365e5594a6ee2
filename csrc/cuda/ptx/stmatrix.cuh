// 8 x 8 matrices of 16-bit elements from the registers of a warp into shared memory: ldmatrix (ldmatrix.cuh) the other
// way round, with the same lanes, rows and halves.
//
// PTX ISA, "Warp-Level Matrix Instructions: stmatrix"; sm_90.
#ifndef PYGPT_CUDA_PTX_STMATRIX_CUH
#define PYGPT_CUDA_PTX_STMATRIX_CUH

#include <cstdint>

#include "cuda/ptx/sm90a.cuh"

namespace pygpt::cuda::ptx {

// stmatrix.x1
__device__ inline void stmatrix(std::uint32_t row_address, const std::uint32_t (&from)[1]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(row_address), "r"(from[0]) : "memory");
}

// stmatrix.x2
__device__ inline void stmatrix(std::uint32_t row_address, const std::uint32_t (&from)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(row_address), "r"(from[0]),
                 "r"(from[1])
                 : "memory");
}

// stmatrix.x4
__device__ inline void stmatrix(std::uint32_t row_address, const std::uint32_t (&from)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_address), "r"(from[0]),
                 "r"(from[1]), "r"(from[2]), "r"(from[3])
                 : "memory");
}

// stmatrix.x2.trans
__device__ inline void stmatrix_transposed(std::uint32_t row_address, const std::uint32_t (&from)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(row_address), "r"(from[0]),
                 "r"(from[1])
                 : "memory");
}

// stmatrix.x4.trans
__device__ inline void stmatrix_transposed(std::uint32_t row_address, const std::uint32_t (&from)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_address),
                 "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
                 : "memory");
}

}  // namespace pygpt::cuda::ptx

#endif
