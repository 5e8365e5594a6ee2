#include "ops/rms_norm.h"

#include "bindings/bindings.h"
#include "bindings/call.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle x, py::handle residual, py::handle weight, py::handle eps, py::handle out, py::handle sum,
             py::handle rstd) {
    Call call;
    const rms_norm::Forward arguments{
        .x = call.input(x, "x"),
        .residual = call.optional_input(residual, "residual"),
        .weight = call.input(weight, "weight"),
        .eps = number(eps, "eps"),
        .out = call.output(out, "out"),
        .sum = call.optional_output(sum, "sum"),
        .rstd = call.optional_output(rstd, "rstd"),
    };
    call.run(rms_norm::forward, arguments);
}

void backward(py::handle grad_out, py::handle grad_sum, py::handle x, py::handle weight, py::handle rstd,
              py::handle grad_x, py::handle grad_narrow, py::handle grad_weight) {
    Call call;
    const rms_norm::Backward arguments{
        .grad_out = call.input(grad_out, "grad_out"),
        .grad_sum = call.optional_input(grad_sum, "grad_sum"),
        .x = call.input(x, "x"),
        .weight = call.input(weight, "weight"),
        .rstd = call.input(rstd, "rstd"),
        .grad_x = call.output(grad_x, "grad_x"),
        .grad_narrow = call.optional_output(grad_narrow, "grad_narrow"),
        .grad_weight = call.optional_output(grad_weight, "grad_weight"),
    };
    call.run([&] { rms_norm::backward(arguments); });
}

}  // namespace

void add_rms_norm(py::module_& module) {
    module.def("rms_norm_forward", &forward, py::arg("x"), py::arg("residual"), py::arg("weight"), py::arg("eps"),
               py::arg("out"), py::arg("sum"), py::arg("rstd"));
    module.def("rms_norm_backward", &backward, py::arg("grad_out"), py::arg("grad_sum"), py::arg("x"),
               py::arg("weight"), py::arg("rstd"), py::arg("grad_x"), py::arg("grad_narrow"), py::arg("grad_weight"));
}

}  // namespace pygpt::bindings
