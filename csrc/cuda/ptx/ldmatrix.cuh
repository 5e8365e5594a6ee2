// 8 x 8 matrices of 16-bit elements from shared memory into the registers of a warp.
//
// PTX ISA, "Warp-Level Matrix Instructions: ldmatrix"; sm_75 and up. Lanes 8i to 8i + 7 give the addresses of matrix
// i's rows, 16 bytes each and so aligned (of lanes whose matrix is not loaded the address is not looked at). Lane l
// gets of each matrix row l / 4, elements 2·(l % 4) and the next; of the transposed form column l / 4 of memory's rows
// 2·(l % 4) and the next. The lower half of the register is the first of the two.
#ifndef PYGPT_CUDA_PTX_LDMATRIX_CUH
#define PYGPT_CUDA_PTX_LDMATRIX_CUH

#include <cstdint>

namespace pygpt::cuda::ptx {

// ldmatrix.x4
__device__ inline void ldmatrix(std::uint32_t (&to)[4], std::uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row_address)
                 : "memory");
}

// ldmatrix.x4.trans
__device__ inline void ldmatrix_transposed(std::uint32_t (&to)[4], std::uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row_address)
                 : "memory");
}

}  // namespace pygpt::cuda::ptx

#endif
