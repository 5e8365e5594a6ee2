// torch tensors as TensorViews, read through DLPack's table of functions or, where torch has none or refuses, through
// their Python attributes: pygpt links no part of torch.
#ifndef PYGPT_BINDINGS_TENSORS_H
#define PYGPT_BINDINGS_TENSORS_H

#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "core/tensor_view.h"

namespace pygpt::bindings {

namespace py = pybind11;

// Raises TypeError, naming the argument, if the object is no strided torch tensor on a device that pygpt knows.
TensorView view(py::handle tensor, const char* argument);

// Python's numbers and words. Raise TypeError (ValueError if an integer has too many bits), naming the argument.
double number(py::handle value, const char* argument);
std::int64_t integer(py::handle value, const char* argument);
std::string word(py::handle value, const char* argument);

// One of these, where None may stand.
template <class T>
std::optional<T> optional(T (*read)(py::handle, const char*), py::handle value, const char* argument) {
    if (value.is_none()) return std::nullopt;
    return read(value, argument);
}

}  // namespace pygpt::bindings

#endif
