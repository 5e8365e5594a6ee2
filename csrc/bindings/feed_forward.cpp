#include "ops/feed_forward.h"

#include "bindings/bindings.h"
#include "bindings/call.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle x, py::handle w_in, py::handle b_in, py::handle w_out, py::handle b_out, py::handle packed_w_in,
             py::handle packed_w_out, py::handle activation, py::handle out, py::handle pre_activation, bool decode) {
    Call call;
    const feed_forward::Forward arguments{
        .x = call.input(x, "x"),
        .w_in = call.input(w_in, "w_in"),
        .b_in = call.optional_input(b_in, "b_in"),
        .w_out = call.input(w_out, "w_out"),
        .b_out = call.optional_input(b_out, "b_out"),
        .packed_w_in = call.optional_input(packed_w_in, "packed_w_in"),
        .packed_w_out = call.optional_input(packed_w_out, "packed_w_out"),
        .activation = activation_named(optional(word, activation, "activation")),
        .out = call.output(out, "out"),
        .pre_activation = call.optional_output(pre_activation, "pre_activation"),
        .decode = decode,
    };
    call.run(feed_forward::forward, arguments);
}

void backward(py::handle grad_out, py::handle x, py::handle w_in, py::handle w_out, py::handle pre_activation,
              py::handle activation, py::handle grad_x, py::handle grad_w_in, py::handle grad_b_in,
              py::handle grad_w_out, py::handle grad_b_out) {
    Call call;
    const feed_forward::Backward arguments{
        .grad_out = call.input(grad_out, "grad_out"),
        .x = call.input(x, "x"),
        .w_in = call.input(w_in, "w_in"),
        .w_out = call.input(w_out, "w_out"),
        .pre_activation = call.input(pre_activation, "pre_activation"),
        .activation = activation_named(optional(word, activation, "activation")),
        .grad_x = call.optional_output(grad_x, "grad_x"),
        .grad_w_in = call.optional_output(grad_w_in, "grad_w_in"),
        .grad_b_in = call.optional_output(grad_b_in, "grad_b_in"),
        .grad_w_out = call.optional_output(grad_w_out, "grad_w_out"),
        .grad_b_out = call.optional_output(grad_b_out, "grad_b_out"),
    };
    call.run([&] { feed_forward::backward(arguments); });
}

}  // namespace

void add_feed_forward(py::module_& module) {
    module.def("feed_forward_forward", &forward, py::arg("x"), py::arg("w_in"), py::arg("b_in"), py::arg("w_out"),
               py::arg("b_out"), py::arg("packed_w_in"), py::arg("packed_w_out"), py::arg("activation"), py::arg("out"),
               py::arg("pre_activation"), py::arg("decode"));
    module.def("feed_forward_backward", &backward, py::arg("grad_out"), py::arg("x"), py::arg("w_in"), py::arg("w_out"),
               py::arg("pre_activation"), py::arg("activation"), py::arg("grad_x"), py::arg("grad_w_in"),
               py::arg("grad_b_in"), py::arg("grad_w_out"), py::arg("grad_b_out"));
}

}  // namespace pygpt::bindings
