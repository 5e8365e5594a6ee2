#include "ops/linear_cross_entropy.h"

#include "bindings/bindings.h"
#include "bindings/tensors.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle hidden, py::handle weight, py::handle bias, py::handle targets, py::handle ignore_index,
             py::handle reduction, py::handle loss, py::handle grad_losses, py::handle grad_hidden,
             py::handle grad_weight, py::handle grad_bias) {
    const linear_cross_entropy::Forward arguments{
        .hidden = view(hidden, "hidden"),
        .weight = view(weight, "weight"),
        .bias = optional_view(bias, "bias"),
        .targets = view(targets, "targets"),
        .ignore_index = integer(ignore_index, "ignore_index"),
        .reduction = cross_entropy::reduction_named(word(reduction, "reduction")),
        .loss = optional_view(loss, "loss"),
        .grad_losses = optional_view(grad_losses, "grad_losses"),
        .grad_hidden = optional_view(grad_hidden, "grad_hidden"),
        .grad_weight = optional_view(grad_weight, "grad_weight"),
        .grad_bias = optional_view(grad_bias, "grad_bias"),
    };
    call([&] { linear_cross_entropy::forward(arguments); });
}

}  // namespace

void add_linear_cross_entropy(py::module_& module) {
    module.def("linear_cross_entropy_forward", &forward, py::arg("hidden"), py::arg("weight"), py::arg("bias"),
               py::arg("targets"), py::arg("ignore_index"), py::arg("reduction"), py::arg("loss"),
               py::arg("grad_losses"), py::arg("grad_hidden"), py::arg("grad_weight"), py::arg("grad_bias"));
}

}  // namespace pygpt::bindings
