#include "ops/linear_cross_entropy.h"

#include "bindings/bindings.h"
#include "bindings/call.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle hidden, py::handle weight, py::handle bias, py::handle targets, py::handle ignore_index,
             py::handle reduction, py::handle loss, py::handle grad_losses, py::handle grad_hidden,
             py::handle grad_weight, py::handle grad_bias) {
    Call call;
    const linear_cross_entropy::Forward arguments{
        .hidden = call.input(hidden, "hidden"),
        .weight = call.input(weight, "weight"),
        .bias = call.optional_input(bias, "bias"),
        .targets = call.input(targets, "targets"),
        .ignore_index = integer(ignore_index, "ignore_index"),
        .reduction = cross_entropy::reduction_named(word(reduction, "reduction")),
        .loss = call.optional_output(loss, "loss"),
        .grad_losses = call.optional_output(grad_losses, "grad_losses"),
        .grad_hidden = call.optional_output(grad_hidden, "grad_hidden"),
        .grad_weight = call.optional_output(grad_weight, "grad_weight"),
        .grad_bias = call.optional_output(grad_bias, "grad_bias"),
    };
    call.run([&] { linear_cross_entropy::forward(arguments); });
}

}  // namespace

void add_linear_cross_entropy(py::module_& module) {
    module.def("linear_cross_entropy_forward", &forward, py::arg("hidden"), py::arg("weight"), py::arg("bias"),
               py::arg("targets"), py::arg("ignore_index"), py::arg("reduction"), py::arg("loss"),
               py::arg("grad_losses"), py::arg("grad_hidden"), py::arg("grad_weight"), py::arg("grad_bias"));
}

}  // namespace pygpt::bindings
