#include "ops/quantized_linear.h"

#include "bindings/bindings.h"
#include "bindings/call.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle x, py::handle weight, py::handle scheme, py::handle bias, py::handle activation,
             py::handle residual, py::handle out) {
    Call call;
    const quantized_linear::Forward arguments{
        .x = call.input(x, "x"),
        .weight = call.input(weight, "weight"),
        .scheme = quantized_linear::scheme_named(word(scheme, "scheme")),
        .bias = call.optional_input(bias, "bias"),
        .activation = activation_named(optional(word, activation, "activation")),
        .residual = call.optional_input(residual, "residual"),
        .out = call.output(out, "out"),
    };
    call.run(quantized_linear::forward, arguments);
}

}  // namespace

void add_quantized_linear(py::module_& module) {
    module.def("quantized_linear_forward", &forward, py::arg("x"), py::arg("weight"), py::arg("scheme"),
               py::arg("bias"), py::arg("activation"), py::arg("residual"), py::arg("out"));
    module.def(
        "quantized_linear_packed_bytes",
        [](std::int64_t out_features, std::int64_t in_features, py::handle scheme) {
            const auto named = quantized_linear::scheme_named(word(scheme, "scheme"));
            return quantized_linear::packed_bytes(out_features, in_features, named);
        },
        py::arg("out_features"), py::arg("in_features"), py::arg("scheme"));
}

}  // namespace pygpt::bindings
