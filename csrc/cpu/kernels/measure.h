// The loops behind cpu/measure.h, defined once per instruction set by kernels/measure.cpp.
#ifndef PYGPT_CPU_KERNELS_MEASURE_H
#define PYGPT_CPU_KERNELS_MEASURE_H

#include <cstdint>

#include "core/dtype.h"
#include "cpu/features.h"

namespace pygpt::cpu {

struct MultiplyAdds {
    double operations;  // done, a multiply-add counting as two; 0 if the set has none of the dtype
    double sum;
};

template <Isa isa>
MultiplyAdds multiply_adds(DType dtype, std::int64_t rounds);
template <Isa isa>
float read_sum(const float* data, std::int64_t count);

}  // namespace pygpt::cpu

#endif
