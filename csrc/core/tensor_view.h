// A tensor as the ops see it: where it lies, what it holds, its shape and its strides (in elements). It owns nothing.
#ifndef PYGPT_CORE_TENSOR_VIEW_H
#define PYGPT_CORE_TENSOR_VIEW_H

#include <cstdint>
#include <string>

#include "core/dtype.h"

namespace pygpt {

enum class DeviceType : std::int8_t { cpu, cuda };

struct Device {
    DeviceType type;
    int index;  // 0 on the CPU
    bool operator==(const Device&) const = default;
};

constexpr int max_dimensions = 8;

struct TensorView {
    void* data;
    DType dtype;
    Device device;
    int dimensions;
    std::int64_t shape[max_dimensions];
    std::int64_t strides[max_dimensions];
};

std::int64_t elements(const TensorView& tensor);
bool is_contiguous(const TensorView& tensor);
bool same_shape(const TensorView& a, const TensorView& b);
std::string shape_text(const TensorView& tensor);                        // "(2, 3)"
std::string place_text(const TensorView& tensor, std::int64_t element);  // "[1, 0]"; "" where there are no dimensions
std::string device_text(const Device& device);                           // "cpu", "cuda:0"

}  // namespace pygpt

#endif
