// Element types of tensors, by torch's names.
#ifndef PYGPT_CORE_DTYPE_H
#define PYGPT_CORE_DTYPE_H

#include <cstdint>

namespace pygpt {

enum class DType : std::int8_t { float32, bfloat16, float16, float64, int64, int32, uint8, boolean };

const char* name(DType dtype);
std::int64_t bytes_of(DType dtype);

// The upper half of a float32. Arithmetic happens in float32; conversions stand in cpu/kernels/simd.h.
struct bfloat16 {
    std::uint16_t bits;
};

}  // namespace pygpt

#endif
