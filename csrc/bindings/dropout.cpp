#include "ops/dropout.h"

#include "bindings/bindings.h"
#include "bindings/call.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle x, py::handle seed, py::handle p, py::handle out) {
    Call call;
    const dropout::Forward arguments{
        .x = call.input(x, "x"),
        .seed = call.input(seed, "seed"),
        .p = number(p, "p"),
        .out = call.output(out, "out"),
    };
    call.run([&] { dropout::forward(arguments); });
}

}  // namespace

void add_dropout(py::module_& module) {
    module.def("dropout_forward", &forward, py::arg("x"), py::arg("seed"), py::arg("p"), py::arg("out"));
}

}  // namespace pygpt::bindings
