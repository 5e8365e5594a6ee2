// torch tensors as TensorViews, read through their Python attributes: pygpt links no part of torch.
#ifndef PYGPT_BINDINGS_TENSORS_H
#define PYGPT_BINDINGS_TENSORS_H

#include <pybind11/pybind11.h>

#include <exception>
#include <optional>
#include <string>

#include "core/tensor_view.h"
#include "cpu/thread_pool.h"

namespace pygpt::bindings {

namespace py = pybind11;

// Raises TypeError, naming the argument, if the object is no strided torch tensor on a device that pygpt knows.
TensorView view(py::handle tensor, const char* argument);

// The same, where None may stand.
std::optional<TensorView> optional_view(py::handle tensor, const char* argument);

// Python's numbers and words. Raise TypeError (ValueError if an integer has more than 64 bits), naming the argument.
double number(py::handle value, const char* argument);
std::int64_t integer(py::handle value, const char* argument);
std::string word(py::handle value, const char* argument);

// One of these, where None may stand.
template <class T>
std::optional<T> optional(T (*read)(py::handle, const char*), py::handle value, const char* argument) {
    if (value.is_none()) return std::nullopt;
    return read(value, argument);
}

// What torch.get_num_threads() says now.
int torch_threads();

// Takes the GIL back after PyEval_SaveThread. Not a destructor: in an interpreter that is ending, a daemon thread does
// not come back from here, and ends without unwinding.
void take_gil(PyThreadState* state);

// Runs an op without the GIL, on as many threads as torch uses, in the kernels' floating-point mode.
template <class F>
void call(F&& op) {
    const int threads = torch_threads();
    PyThreadState* const state = PyEval_SaveThread();
    std::exception_ptr error;
    try {
        cpu::set_threads(threads);
        const cpu::FloatingPointMode mode;
        op();
    } catch (...) {
        error = std::current_exception();
    }
    take_gil(state);
    if (error) std::rethrow_exception(error);
}

}  // namespace pygpt::bindings

#endif
