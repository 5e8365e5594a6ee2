#include "ops/add.h"

#include "bindings/bindings.h"
#include "bindings/call.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle x, py::handle y, py::handle out) {
    Call call;
    const add::Forward arguments{.x = call.input(x, "x"), .y = call.input(y, "y"), .out = call.output(out, "out")};
    call.run(add::forward, arguments);
}

void backward(py::handle grad_out, py::handle grad_y) {
    Call call;
    const add::Backward arguments{.grad_out = call.input(grad_out, "grad_out"),
                                  .grad_y = call.output(grad_y, "grad_y")};
    call.run([&] { add::backward(arguments); });
}

}  // namespace

void add_add(py::module_& module) {
    module.def("add_forward", &forward, py::arg("x"), py::arg("y"), py::arg("out"));
    module.def("add_backward", &backward, py::arg("grad_out"), py::arg("grad_y"));
}

}  // namespace pygpt::bindings
