#include "ops/dropout.h"

#include "bindings/bindings.h"
#include "bindings/tensors.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle x, py::handle seed, py::handle p, py::handle out) {
    const dropout::Forward arguments{
        .x = view(x, "x"),
        .seed = view(seed, "seed"),
        .p = number(p, "p"),
        .out = view(out, "out"),
    };
    call([&] { dropout::forward(arguments); });
}

}  // namespace

void add_dropout(py::module_& module) {
    module.def("dropout_forward", &forward, py::arg("x"), py::arg("seed"), py::arg("p"), py::arg("out"));
}

}  // namespace pygpt::bindings
