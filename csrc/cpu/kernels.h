// The CPU kernels of every op. Each is defined once per instruction set, by the file of the op's name in cpu/kernels/.
#ifndef PYGPT_CPU_KERNELS_H
#define PYGPT_CPU_KERNELS_H

#include "cpu/features.h"
#include "ops/layer_norm.h"

namespace pygpt::cpu {

template <Isa isa>
void layer_norm_forward(const layer_norm::Forward& arguments);
template <Isa isa>
void layer_norm_backward(const layer_norm::Backward& arguments);

}  // namespace pygpt::cpu

#endif
