#include "ops/add.h"

#include "bindings/bindings.h"
#include "bindings/tensors.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle x, py::handle y, py::handle out) {
    const add::Forward arguments{.x = view(x, "x"), .y = view(y, "y"), .out = view(out, "out")};
    call([&] { add::forward(arguments); });
}

void backward(py::handle grad_out, py::handle grad_y) {
    const add::Backward arguments{.grad_out = view(grad_out, "grad_out"), .grad_y = view(grad_y, "grad_y")};
    call([&] { add::backward(arguments); });
}

}  // namespace

void add_add(py::module_& module) {
    module.def("add_forward", &forward, py::arg("x"), py::arg("y"), py::arg("out"));
    module.def("add_backward", &backward, py::arg("grad_out"), py::arg("grad_y"));
}

}  // namespace pygpt::bindings
