// Matrix products of a warp, d += a · b, in float32 accumulators.
//
// PTX ISA, "Warp-Level Matrix Instructions: mma"; sm_80 and up. With g = lane / 4 and q = lane % 4 a lane holds, for
// m16n8k16 (two 16-bit elements to a register, the lower half first):
//
//   a[0]: row g,     k 2q, 2q + 1     a[1]: row g + 8, k 2q, 2q + 1     a[2], a[3]: the same rows, k + 8
//   b0: column g,    k 2q, 2q + 1     b1: column g,    k 2q + 8, 2q + 9
//   d[0], d[1]: row g, columns 2q, 2q + 1                               d[2], d[3]: row g + 8
#ifndef PYGPT_CUDA_PTX_MMA_CUH
#define PYGPT_CUDA_PTX_MMA_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace pygpt::cuda::ptx {

// mma.m16n8k16 of two 16-bit floating-point types; the storage type says which.
template <class Storage>
__device__ inline void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);

template <>
__device__ inline void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                                   std::uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ inline void mma_m16n8k16<__half>(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                            std::uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace pygpt::cuda::ptx

#endif
