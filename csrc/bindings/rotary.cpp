#include "ops/rotary.h"

#include "bindings/bindings.h"
#include "bindings/call.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle x, py::handle positions, py::handle table, bool back, py::handle out) {
    Call call;
    const rotary::Forward arguments{
        .x = call.input(x, "x"),
        .positions = call.input(positions, "positions"),
        .table = call.input(table, "table"),
        .back = back,
        .out = call.output(out, "out"),
    };
    call.run(rotary::forward, arguments);
}

}  // namespace

void add_rotary(py::module_& module) {
    module.def("rotary_forward", &forward, py::arg("x"), py::arg("positions"), py::arg("table"), py::arg("back"),
               py::arg("out"));
}

}  // namespace pygpt::bindings
