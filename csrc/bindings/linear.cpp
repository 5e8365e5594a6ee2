#include "ops/linear.h"

#include "bindings/bindings.h"
#include "bindings/call.h"
#include "ops/check.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle x, py::handle weight, py::handle packed_weight, py::handle bias, py::handle activation,
             py::handle residual, py::handle out, py::handle pre_activation, bool decode) {
    Call call;
    const linear::Forward arguments{
        .x = call.input(x, "x"),
        .weight = call.input(weight, "weight"),
        .packed_weight = call.optional_input(packed_weight, "packed_weight"),
        .bias = call.optional_input(bias, "bias"),
        .activation = activation_named(optional(word, activation, "activation")),
        .residual = call.optional_input(residual, "residual"),
        .out = call.output(out, "out"),
        .pre_activation = call.optional_output(pre_activation, "pre_activation"),
        .decode = decode,
    };
    call.run(linear::forward, arguments);
}

void backward(py::handle grad_out, py::handle x, py::handle weight, py::handle pre_activation, py::handle activation,
              py::handle grad_x, py::handle grad_weight, py::handle grad_bias) {
    Call call;
    const linear::Backward arguments{
        .grad_out = call.input(grad_out, "grad_out"),
        .x = call.input(x, "x"),
        .weight = call.input(weight, "weight"),
        .pre_activation = call.optional_input(pre_activation, "pre_activation"),
        .activation = activation_named(optional(word, activation, "activation")),
        .grad_x = call.optional_output(grad_x, "grad_x"),
        .grad_weight = call.optional_output(grad_weight, "grad_weight"),
        .grad_bias = call.optional_output(grad_bias, "grad_bias"),
    };
    call.run([&] { linear::backward(arguments); });
}

void pack(py::handle weight, py::handle packed_weight) {
    Call call;
    const linear::Pack arguments{
        .weight = call.input(weight, "weight"),
        .packed_weight = call.output(packed_weight, "packed_weight"),
    };
    call.run([&] { linear::pack(arguments); });
}

}  // namespace

void add_linear(py::module_& module) {
    module.def("linear_forward", &forward, py::arg("x"), py::arg("weight"), py::arg("packed_weight"), py::arg("bias"),
               py::arg("activation"), py::arg("residual"), py::arg("out"), py::arg("pre_activation"),
               py::arg("decode"));
    module.def("linear_backward", &backward, py::arg("grad_out"), py::arg("x"), py::arg("weight"),
               py::arg("pre_activation"), py::arg("activation"), py::arg("grad_x"), py::arg("grad_weight"),
               py::arg("grad_bias"));
    module.def(
        "linear_packed_bytes",
        [](py::handle weight) {
            const TensorView w = view(weight, "weight");
            check::dimensions_are({"weight", w}, 2, "(out, in)");
            return linear::packed_bytes(w.shape[0], w.shape[1], w.dtype);
        },
        py::arg("weight"));
    module.def("linear_pack", &pack, py::arg("weight"), py::arg("packed_weight"));
}

}  // namespace pygpt::bindings
