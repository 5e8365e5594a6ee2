// The launchers of CUDA kernels, an op's each defined by the file of its name under csrc/cuda. They are weak: in a
// build without a CUDA part their addresses are null, and the entries that hold them refuse everything
// (cuda/features.h).
#ifndef PYGPT_CUDA_KERNELS_H
#define PYGPT_CUDA_KERNELS_H

#include "ops/add.h"
#include "ops/layer_norm.h"

namespace pygpt::cuda {

[[gnu::weak]] void add_forward(const add::Forward& arguments);
[[gnu::weak]] void add_backward(const add::Backward& arguments);
[[gnu::weak]] void layer_norm_forward(const layer_norm::Forward& arguments);
[[gnu::weak]] void layer_norm_backward(const layer_norm::Backward& arguments);

}  // namespace pygpt::cuda

#endif
