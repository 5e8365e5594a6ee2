// The memory of a tensor as kernels take it: a typed pointer, null where there is no tensor.
#ifndef PYGPT_CUDA_POINTER_H
#define PYGPT_CUDA_POINTER_H

#include <optional>

#include "core/tensor_view.h"

namespace pygpt::cuda {

template <class T>
T* pointer(const TensorView& tensor) {
    return static_cast<T*>(tensor.data);
}
template <class T>
T* pointer(const std::optional<TensorView>& tensor) {
    return tensor ? static_cast<T*>(tensor->data) : nullptr;
}

}  // namespace pygpt::cuda

#endif
