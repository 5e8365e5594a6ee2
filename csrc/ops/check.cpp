#include "ops/check.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "cuda/features.h"

namespace pygpt::check {

void dtype_in(const Named& argument, std::initializer_list<DType> allowed) {
    if (std::find(allowed.begin(), allowed.end(), argument.tensor.dtype) != allowed.end()) return;
    std::string names;
    for (DType dtype : allowed) names += std::string(names.empty() ? "" : ", ") + name(dtype);
    throw TypeError(text(argument.name, " must be of dtype ", names, ", but is ", name(argument.tensor.dtype)));
}

void dtype_is(const Named& argument, DType dtype, const char* because) {
    if (argument.tensor.dtype == dtype) return;
    throw TypeError(
        text(argument.name, " must be ", name(dtype), " (", because, "), but is ", name(argument.tensor.dtype)));
}

void on_device(const Named& argument, const Device& device, const char* because) {
    if (argument.tensor.device == device) return;
    throw ValueError(text(argument.name, " must be on ", device_text(device), " (", because, "), but is on ",
                          device_text(argument.tensor.device)));
}

void same_dtype(const Named& argument, const Named& model) {
    if (argument.tensor.dtype == model.tensor.dtype) return;
    dtype_is(argument, model.tensor.dtype, text("the dtype of ", model.name).c_str());
}

void same_device(const Named& argument, const Named& model) {
    if (argument.tensor.device == model.tensor.device) return;
    on_device(argument, model.tensor.device, text("where ", model.name, " is").c_str());
}

void shape_is(const Named& argument, std::initializer_list<std::int64_t> shape, const char* because) {
    const TensorView& tensor = argument.tensor;
    if (tensor.dimensions == static_cast<int>(shape.size()) && std::equal(shape.begin(), shape.end(), tensor.shape)) {
        return;
    }
    TensorView expected{};
    expected.dimensions = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), expected.shape);
    throw ValueError(text(argument.name, " must have shape ", shape_text(expected), " (", because, "), but has ",
                          shape_text(tensor)));
}

void dimensions_are(const Named& argument, int dimensions, const char* form) {
    if (argument.tensor.dimensions == dimensions) return;
    throw ValueError(text(argument.name, " must be ", form, ", but has shape ", shape_text(argument.tensor)));
}

void contiguous(const Named& argument) {
    if (is_contiguous(argument.tensor)) return;
    throw ValueError(text(argument.name, " must be contiguous, but has shape ", shape_text(argument.tensor)));
}

void like(const Named& argument, const Named& model) {
    same_dtype(argument, model);
    like_but_for_dtype(argument, model);
}

void like_but_for_dtype(const Named& argument, const Named& model) {
    if (!same_shape(argument.tensor, model.tensor)) {
        throw ValueError(text(argument.name, " must have the shape of ", model.name, ", ", shape_text(model.tensor),
                              ", but has ", shape_text(argument.tensor)));
    }
    same_device(argument, model);
    contiguous(argument);
}

DType joint_dtype(DType before, const Named& argument) {
    const DType dtype = argument.tensor.dtype;
    if (dtype == DType::float32 || dtype == DType::bfloat16) return before;
    if (before != DType::float32 && before != dtype) {
        throw TypeError(text(argument.name, " must not be ", name(dtype), " beside others that are ", name(before),
                             ": float16 is for CUDA alone, float64 for the CPU"));
    }
    return dtype;
}

Values::Values(const TensorView& tensor) {
    static const char* const value = std::getenv("PYGPT_CHECK");
    static const bool everywhere = value && std::string_view(value) == "1";
    if (tensor.device.type == DeviceType::cpu) {
        data_ = tensor.data;
    } else if (everywhere && elements(tensor) > 0) {
        const auto bytes = static_cast<std::size_t>(elements(tensor) * bytes_of(tensor.dtype));
        copy_.resize((bytes + sizeof(std::int64_t) - 1) / sizeof(std::int64_t));
        cuda::copy_to_host(copy_.data(), tensor.data, bytes);
        data_ = copy_.data();
    }
}

void indices_in(const Named& argument, std::int64_t limit, std::optional<std::int64_t> except, const char* limit_is) {
    const TensorView& tensor = argument.tensor;
    const Values all(tensor);
    const auto* values = all.as<std::int64_t>();
    if (!values) return;
    const std::int64_t count = elements(tensor);
    for (std::int64_t i = 0; i < count; ++i) {
        if ((values[i] >= 0 && values[i] < limit) || values[i] == except) continue;
        throw ValueError(text(argument.name, place_text(tensor, i), " is ", values[i],
                              ", but must be at least 0 and less than ", limit, ", ", limit_is,
                              except ? text(", or ", *except) : ""));
    }
}

}  // namespace pygpt::check
