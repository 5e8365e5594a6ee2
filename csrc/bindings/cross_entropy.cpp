#include "ops/cross_entropy.h"

#include "bindings/bindings.h"
#include "bindings/tensors.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle logits, py::handle targets, py::handle ignore_index, py::handle reduction, py::handle loss,
             py::handle maximum, py::handle sum) {
    const cross_entropy::Forward arguments{
        .logits = view(logits, "logits"),
        .targets = view(targets, "targets"),
        .ignore_index = integer(ignore_index, "ignore_index"),
        .reduction = cross_entropy::reduction_named(word(reduction, "reduction")),
        .loss = view(loss, "loss"),
        .maximum = optional_view(maximum, "maximum"),
        .sum = optional_view(sum, "sum"),
    };
    call([&] { cross_entropy::forward(arguments); });
}

void backward(py::handle grad_loss, py::handle logits, py::handle targets, py::handle maximum, py::handle sum,
              py::handle ignore_index, py::handle reduction, py::handle grad_logits) {
    const cross_entropy::Backward arguments{
        .grad_loss = view(grad_loss, "grad_loss"),
        .logits = view(logits, "logits"),
        .targets = view(targets, "targets"),
        .maximum = view(maximum, "maximum"),
        .sum = view(sum, "sum"),
        .ignore_index = integer(ignore_index, "ignore_index"),
        .reduction = cross_entropy::reduction_named(word(reduction, "reduction")),
        .grad_logits = view(grad_logits, "grad_logits"),
    };
    call([&] { cross_entropy::backward(arguments); });
}

}  // namespace

void add_cross_entropy(py::module_& module) {
    module.def("cross_entropy_forward", &forward, py::arg("logits"), py::arg("targets"), py::arg("ignore_index"),
               py::arg("reduction"), py::arg("loss"), py::arg("maximum"), py::arg("sum"));
    module.def("cross_entropy_backward", &backward, py::arg("grad_loss"), py::arg("logits"), py::arg("targets"),
               py::arg("maximum"), py::arg("sum"), py::arg("ignore_index"), py::arg("reduction"),
               py::arg("grad_logits"));
}

}  // namespace pygpt::bindings
