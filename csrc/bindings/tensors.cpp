#include "bindings/tensors.h"

#include <algorithm>
#include <string>

#include "bindings/build_facts.h"
#include "bindings/dlpack.h"
#include "core/error.h"

namespace pygpt::bindings {
namespace {

// The names and objects of torch that reading a tensor needs, looked up once. Never freed: the interpreter may be gone
// when the library is unloaded.
struct Torch {
    py::object module = py::module_::import("torch");
    py::object tensor = module.attr("Tensor");
    std::pair<py::object, DType> dtypes[8] = {
        {module.attr("float32"), DType::float32}, {module.attr("bfloat16"), DType::bfloat16},
        {module.attr("float16"), DType::float16}, {module.attr("float64"), DType::float64},
        {module.attr("int64"), DType::int64},     {module.attr("int32"), DType::int32},
        {module.attr("uint8"), DType::uint8},     {module.attr("bool"), DType::boolean},
    };
    PyObject* dtype = PyUnicode_InternFromString("dtype");
    PyObject* shape = PyUnicode_InternFromString("shape");
    PyObject* stride = PyUnicode_InternFromString("stride");
    PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
    PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
    PyObject* device = PyUnicode_InternFromString("device");
    decltype(dlpack::ExchangeApi::view) dlpack_view = find_dlpack_view(tensor);  // null in older torches

    static decltype(dlpack_view) find_dlpack_view(const py::object& tensor_type) {
        constexpr const char* capsule_name = "dlpack_exchange_api";
        const py::object capsule = py::getattr(tensor_type, "__dlpack_c_exchange_api__", py::none());
        if (!PyCapsule_IsValid(capsule.ptr(), capsule_name)) return nullptr;
        const auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), capsule_name));
        return api->major_version == 1 ? api->view : nullptr;
    }
};

const Torch& torch() {
    // Guarded by the GIL. Not made as the static is initialised: an import may let the GIL go, to a thread that would
    // then hold it while it waits for that initialisation.
    static const Torch* objects = nullptr;
    if (!objects) objects = new Torch;
    return *objects;
}

py::object attribute(py::handle object, PyObject* name) {
    PyObject* value = PyObject_GetAttr(object.ptr(), name);
    if (!value) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(value);
}

py::object method(py::handle object, PyObject* name) {
    PyObject* value = PyObject_CallMethodNoArgs(object.ptr(), name);
    if (!value) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(value);
}

DType dtype_of(py::handle tensor, const char* argument) {
    const py::object dtype = attribute(tensor, torch().dtype);
    for (const auto& [object, value] : torch().dtypes) {
        if (dtype.is(object)) return value;
    }
    throw TypeError(text(argument, " has dtype ", std::string(py::str(dtype)), ", which pygpt does not compute with"));
}

// Where a CPU tensor is: on the emulated device, device memory is host memory.
constexpr Device host{build_facts::emulated ? DeviceType::cuda : DeviceType::cpu, 0};

Device device_of(py::handle tensor, const char* argument) {
    if (attribute(tensor, torch().is_cpu).ptr() == Py_True) return host;
    const py::object device = attribute(tensor, torch().device);
    const std::string type = py::str(device.attr("type"));
    if (type == "cuda") return {DeviceType::cuda, device.attr("index").cast<int>()};
    throw ValueError(text(argument, " must be on the CPU or a CUDA device, but is on ", type));
}

std::optional<DType> dtype_of(const dlpack::Tensor& tensor) {
    if (tensor.type_lanes != 1) return std::nullopt;
    switch (tensor.type_code * 256 + tensor.type_bits) {
        case dlpack::ieee_float * 256 + 32:
            return DType::float32;
        case dlpack::brain_float * 256 + 16:
            return DType::bfloat16;
        case dlpack::ieee_float * 256 + 16:
            return DType::float16;
        case dlpack::ieee_float * 256 + 64:
            return DType::float64;
        case dlpack::signed_integer * 256 + 64:
            return DType::int64;
        case dlpack::signed_integer * 256 + 32:
            return DType::int32;
        case dlpack::unsigned_integer * 256 + 8:
            return DType::uint8;
        case dlpack::boolean * 256 + 8:
            return DType::boolean;
        default:
            return std::nullopt;
    }
}

// The view by one call of torch; nothing where there is none, or where only the attributes can tell what is wrong.
std::optional<TensorView> quick_view(py::handle tensor) {
    if (!torch().dlpack_view) return std::nullopt;
    dlpack::Tensor from{};
    if (torch().dlpack_view(tensor.ptr(), &from) != 0) {
        PyErr_Clear();
        return std::nullopt;
    }
    const std::optional<DType> dtype = dtype_of(from);
    const bool on_cpu = from.device_type == dlpack::cpu;
    if (!dtype || !(on_cpu || from.device_type == dlpack::cuda) || from.dimensions > max_dimensions) {
        return std::nullopt;
    }
    TensorView out{};
    out.data = static_cast<char*>(from.data) + from.byte_offset;
    out.dtype = *dtype;
    out.device = on_cpu ? host : Device{DeviceType::cuda, from.device_index};
    out.dimensions = from.dimensions;
    std::copy_n(from.shape, from.dimensions, out.shape);
    std::copy_n(from.strides, from.dimensions, out.strides);
    if (!out.data && elements(out) > 0) return std::nullopt;
    return out;
}

}  // namespace

TensorView view(py::handle tensor, const char* argument) {
    if (!PyObject_TypeCheck(tensor.ptr(), reinterpret_cast<PyTypeObject*>(torch().tensor.ptr()))) {
        throw TypeError(text(argument, " must be a torch.Tensor, but is a ", Py_TYPE(tensor.ptr())->tp_name));
    }
    if (const std::optional<TensorView> quick = quick_view(tensor)) return *quick;
    TensorView out{};
    out.dtype = dtype_of(tensor, argument);
    out.device = device_of(tensor, argument);
    const py::object shape = attribute(tensor, torch().shape);
    const py::object strides = method(tensor, torch().stride);
    const Py_ssize_t dimensions = PyTuple_GET_SIZE(shape.ptr());
    if (dimensions > max_dimensions) {
        throw ValueError(text(argument, " has ", dimensions, " dimensions; pygpt takes at most ", max_dimensions));
    }
    out.dimensions = static_cast<int>(dimensions);
    for (Py_ssize_t i = 0; i < dimensions; ++i) {
        out.shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i));
        out.strides[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides.ptr(), i));
    }
    out.data = PyLong_AsVoidPtr(method(tensor, torch().data_ptr).ptr());
    if (!out.data && elements(out) > 0) throw ValueError(text(argument, " has no memory: its storage was freed"));
    return out;
}

double number(py::handle value, const char* argument) {
    const double out = PyFloat_AsDouble(value.ptr());
    if (out == -1 && PyErr_Occurred()) {
        const bool too_large = PyErr_ExceptionMatches(PyExc_OverflowError);
        PyErr_Clear();
        if (too_large) throw ValueError(text(argument, " must fit in a float64, but is too large"));
        throw TypeError(text(argument, " must be a number, but is a ", Py_TYPE(value.ptr())->tp_name));
    }
    return out;
}

std::int64_t integer(py::handle value, const char* argument) {
    const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!index) {
        PyErr_Clear();
        throw TypeError(text(argument, " must be an integer, but is a ", Py_TYPE(value.ptr())->tp_name));
    }
    const long long out = PyLong_AsLongLong(index.ptr());
    if (out == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        throw ValueError(text(argument, " must fit in 64 bits, but is ", std::string(py::str(index))));
    }
    return out;
}

std::string word(py::handle value, const char* argument) {
    if (!PyUnicode_Check(value.ptr())) {
        throw TypeError(text(argument, " must be a str, but is a ", Py_TYPE(value.ptr())->tp_name));
    }
    return value.cast<std::string>();
}

}  // namespace pygpt::bindings
