#include "ops/grad_norm.h"

#include "bindings/bindings.h"
#include "bindings/call.h"

namespace pygpt::bindings {
namespace {

void forward(const py::list& tensors, py::handle out) {
    Call call;
    grad_norm::Forward arguments{.tensors = {}, .out = call.output(out, "out")};
    arguments.tensors.reserve(tensors.size());
    for (const py::handle tensor : tensors) arguments.tensors.push_back(call.input(tensor, "tensors"));
    call.run([&] { grad_norm::forward(arguments); });
}

}  // namespace

void add_grad_norm(py::module_& module) {
    module.def("grad_norm_forward", &forward, py::arg("tensors"), py::arg("out"));
}

}  // namespace pygpt::bindings
