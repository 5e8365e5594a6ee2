#include "core/tensor_view.h"

#include "core/error.h"

namespace pygpt {

const char* name(DType dtype) {
    switch (dtype) {
        case DType::float32:
            return "float32";
        case DType::bfloat16:
            return "bfloat16";
        case DType::float16:
            return "float16";
        case DType::float64:
            return "float64";
        case DType::int64:
            return "int64";
        case DType::int32:
            return "int32";
        case DType::uint8:
            return "uint8";
        case DType::boolean:
            return "bool";
    }
    return "unknown";
}

std::int64_t bytes_of(DType dtype) {
    switch (dtype) {
        case DType::float64:
        case DType::int64:
            return 8;
        case DType::float32:
        case DType::int32:
            return 4;
        case DType::bfloat16:
        case DType::float16:
            return 2;
        case DType::uint8:
        case DType::boolean:
            return 1;
    }
    return 0;
}

std::int64_t elements(const TensorView& tensor) {
    std::int64_t count = 1;
    for (int i = 0; i < tensor.dimensions; ++i) count *= tensor.shape[i];
    return count;
}

bool is_contiguous(const TensorView& tensor) {
    if (elements(tensor) == 0) return true;
    std::int64_t expected = 1;
    for (int i = tensor.dimensions - 1; i >= 0; --i) {
        if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
        expected *= tensor.shape[i];
    }
    return true;
}

bool same_shape(const TensorView& a, const TensorView& b) {
    if (a.dimensions != b.dimensions) return false;
    for (int i = 0; i < a.dimensions; ++i) {
        if (a.shape[i] != b.shape[i]) return false;
    }
    return true;
}

std::string shape_text(const TensorView& tensor) {
    std::string out = "(";
    for (int i = 0; i < tensor.dimensions; ++i) {
        if (i) out += ", ";
        out += std::to_string(tensor.shape[i]);
    }
    if (tensor.dimensions == 1) out += ",";
    return out + ")";
}

std::string place_text(const TensorView& tensor, std::int64_t element) {
    std::string out;
    for (int i = tensor.dimensions - 1; i >= 0; --i) {
        out = std::to_string(element % tensor.shape[i]) + (out.empty() ? "" : ", ") + out;
        element /= tensor.shape[i];
    }
    return out.empty() ? out : "[" + out + "]";
}

std::string device_text(const Device& device) {
    return device.type == DeviceType::cpu ? "cpu" : text("cuda:", device.index);
}

}  // namespace pygpt
