#include "ops/embedding.h"

#include "bindings/bindings.h"
#include "bindings/call.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle ids, py::handle table, py::handle out) {
    Call call;
    const embedding::Forward arguments{
        .ids = call.input(ids, "ids"), .table = call.input(table, "table"), .out = call.output(out, "out")};
    call.run(embedding::forward, arguments);
}

void backward(py::handle grad_out, py::handle ids, py::handle grad_table) {
    Call call;
    const embedding::Backward arguments{
        .grad_out = call.input(grad_out, "grad_out"),
        .ids = call.input(ids, "ids"),
        .grad_table = call.output(grad_table, "grad_table"),
    };
    call.run([&] { embedding::backward(arguments); });
}

}  // namespace

void add_embedding(py::module_& module) {
    module.def("embedding_forward", &forward, py::arg("ids"), py::arg("table"), py::arg("out"));
    module.def("embedding_backward", &backward, py::arg("grad_out"), py::arg("ids"), py::arg("grad_table"));
}

}  // namespace pygpt::bindings
