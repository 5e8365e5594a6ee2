// What the tensor cores compute: D = A B + C, one instruction.
#pragma once
#include <cstddef>

#include "numbers.h"

namespace emulator {

// The products of a block of k and the accumulator are summed at once in fixed point: every term is an exact
// significand and an exponent (a product's is the sum of its factors'); all are shifted to the largest exponent among
// them and cut, toward zero, to `fraction_bits` fractional bits; the sum is exact; the result is cut, toward zero, to
// fp32. Longer k chains blocks. Source: F. A. Khattak and M. Mikaitis, "Accurate Models of NVIDIA Tensor Cores", 2025;
// proven on recorded results by test_tensor_core.py.
struct TensorCoreModel {
    int block;            // products summed at once
    int fraction_bits;    // kept when terms are aligned: fp32's 23 and some
    int alignment_floor;  // smallest exponent that terms are aligned to
};

enum class TensorInput { bf16, fp16, tf32, e4m3, e5m2 };
constexpr int bytes_of(TensorInput type) {
    return type == TensorInput::tf32 ? 4 : type == TensorInput::bf16 || type == TensorInput::fp16 ? 2 : 1;
}

// mma.sync on this architecture. fp8 is assumed, not proven.
TensorCoreModel mma_model(int arch, TensorInput type);
// wgmma: believed to be mma.sync's of sm_90; an arith_seed other than 0 takes another block length or other extra bits.
TensorCoreModel wgmma_model(TensorInput type);

float input_to_float(u32 bits, TensorInput type);

// d (rows, columns) += a (rows, k) b (k, columns); all row-major, a and b as bit patterns of `type`, d as floats.
// columns is a multiple of 8.
void tensor_core(const u32* a, const u32* b, float* d, int rows, int columns, int k, std::size_t d_pitch,
                 TensorInput type, const TensorCoreModel& model);
// The same by fused multiply-adds in order of k: options().fast_mma.
void fused_multiply_add(const u32* a, const u32* b, float* d, int rows, int columns, int k, std::size_t d_pitch,
                        TensorInput type);

}  // namespace emulator
