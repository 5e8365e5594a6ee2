// Reads, or reads and writes, a float32 at any distance from the beginning of a tensor (../touch.cu).
#pragma once
#include "core/tensor_view.h"

namespace pygpt::cuda {

void touch(const TensorView& tensor, std::int64_t element, bool write);

}  // namespace pygpt::cuda
