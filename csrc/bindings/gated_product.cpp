#include "ops/gated_product.h"

#include "bindings/bindings.h"
#include "bindings/call.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle gate, py::handle up, py::handle activation, py::handle out) {
    Call call;
    const gated_product::Forward arguments{
        .gate = call.input(gate, "gate"),
        .up = call.input(up, "up"),
        .activation = gated_product::gate_named(word(activation, "activation")),
        .out = call.output(out, "out"),
    };
    call.run(gated_product::forward, arguments);
}

void backward(py::handle grad_out, py::handle gate, py::handle up, py::handle activation, py::handle grad_gate,
              py::handle grad_up) {
    Call call;
    const gated_product::Backward arguments{
        .grad_out = call.input(grad_out, "grad_out"),
        .gate = call.input(gate, "gate"),
        .up = call.input(up, "up"),
        .activation = gated_product::gate_named(word(activation, "activation")),
        .grad_gate = call.output(grad_gate, "grad_gate"),
        .grad_up = call.output(grad_up, "grad_up"),
    };
    call.run([&] { gated_product::backward(arguments); });
}

}  // namespace

void add_gated_product(py::module_& module) {
    module.def("gated_product_forward", &forward, py::arg("gate"), py::arg("up"), py::arg("activation"),
               py::arg("out"));
    module.def("gated_product_backward", &backward, py::arg("grad_out"), py::arg("gate"), py::arg("up"),
               py::arg("activation"), py::arg("grad_gate"), py::arg("grad_up"));
}

}  // namespace pygpt::bindings
