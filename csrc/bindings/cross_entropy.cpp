#include "ops/cross_entropy.h"

#include "bindings/bindings.h"
#include "bindings/call.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle logits, py::handle targets, py::handle ignore_index, py::handle reduction, py::handle loss,
             py::handle maximum, py::handle sum) {
    Call call;
    const cross_entropy::Forward arguments{
        .logits = call.input(logits, "logits"),
        .targets = call.input(targets, "targets"),
        .ignore_index = integer(ignore_index, "ignore_index"),
        .reduction = cross_entropy::reduction_named(word(reduction, "reduction")),
        .loss = call.output(loss, "loss"),
        .maximum = call.optional_output(maximum, "maximum"),
        .sum = call.optional_output(sum, "sum"),
    };
    call.run([&] { cross_entropy::forward(arguments); });
}

void backward(py::handle grad_loss, py::handle logits, py::handle targets, py::handle maximum, py::handle sum,
              py::handle ignore_index, py::handle reduction, py::handle grad_logits) {
    Call call;
    const cross_entropy::Backward arguments{
        .grad_loss = call.input(grad_loss, "grad_loss"),
        .logits = call.input(logits, "logits"),
        .targets = call.input(targets, "targets"),
        .maximum = call.input(maximum, "maximum"),
        .sum = call.input(sum, "sum"),
        .ignore_index = integer(ignore_index, "ignore_index"),
        .reduction = cross_entropy::reduction_named(word(reduction, "reduction")),
        .grad_logits = call.output(grad_logits, "grad_logits"),
    };
    call.run([&] { cross_entropy::backward(arguments); });
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
