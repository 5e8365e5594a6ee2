// A kernel that does as it is told, in pygpt._C_emulated alone: tests/test_emulated.py has it touch what it must not.
#include "src/touch.h"

#include "cuda/launch.h"

namespace pygpt::cuda {
namespace {

__global__ void touch_kernel(float* element, bool write) {
    const volatile float value = *element;
    if (write) *element = value;
}

}  // namespace

void touch(const TensorView& tensor, std::int64_t element, bool write) {
    launch(touch_kernel, {.grid = 1, .block = 1}, static_cast<float*>(tensor.data) + element, write);
}

}  // namespace pygpt::cuda
