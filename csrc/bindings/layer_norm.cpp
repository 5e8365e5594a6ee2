#include "ops/layer_norm.h"

#include "bindings/bindings.h"
#include "bindings/tensors.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle x, py::handle residual, py::handle weight, py::handle bias, py::handle eps, py::handle out,
             py::handle sum, py::handle mean, py::handle rstd) {
    const layer_norm::Forward arguments{
        .x = view(x, "x"),
        .residual = optional_view(residual, "residual"),
        .weight = view(weight, "weight"),
        .bias = optional_view(bias, "bias"),
        .eps = number(eps, "eps"),
        .out = view(out, "out"),
        .sum = optional_view(sum, "sum"),
        .mean = optional_view(mean, "mean"),
        .rstd = optional_view(rstd, "rstd"),
    };
    call([&] { layer_norm::forward(arguments); });
}

void backward(py::handle grad_out, py::handle grad_sum, py::handle x, py::handle weight, py::handle mean,
              py::handle rstd, py::handle grad_x, py::handle grad_weight, py::handle grad_bias) {
    const layer_norm::Backward arguments{
        .grad_out = view(grad_out, "grad_out"),
        .grad_sum = optional_view(grad_sum, "grad_sum"),
        .x = view(x, "x"),
        .weight = view(weight, "weight"),
        .mean = view(mean, "mean"),
        .rstd = view(rstd, "rstd"),
        .grad_x = view(grad_x, "grad_x"),
        .grad_weight = optional_view(grad_weight, "grad_weight"),
        .grad_bias = optional_view(grad_bias, "grad_bias"),
    };
    call([&] { layer_norm::backward(arguments); });
}

}  // namespace

void add_layer_norm(py::module_& module) {
    module.def("layer_norm_forward", &forward, py::arg("x"), py::arg("residual"), py::arg("weight"), py::arg("bias"),
               py::arg("eps"), py::arg("out"), py::arg("sum"), py::arg("mean"), py::arg("rstd"));
    module.def("layer_norm_backward", &backward, py::arg("grad_out"), py::arg("grad_sum"), py::arg("x"),
               py::arg("weight"), py::arg("mean"), py::arg("rstd"), py::arg("grad_x"), py::arg("grad_weight"),
               py::arg("grad_bias"));
}

}  // namespace pygpt::bindings
