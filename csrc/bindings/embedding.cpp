#include "ops/embedding.h"

#include "bindings/bindings.h"
#include "bindings/tensors.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle ids, py::handle table, py::handle out) {
    const embedding::Forward arguments{.ids = view(ids, "ids"), .table = view(table, "table"), .out = view(out, "out")};
    call([&] { embedding::forward(arguments); });
}

void backward(py::handle grad_out, py::handle ids, py::handle grad_table) {
    const embedding::Backward arguments{
        .grad_out = view(grad_out, "grad_out"),
        .ids = view(ids, "ids"),
        .grad_table = view(grad_table, "grad_table"),
    };
    call([&] { embedding::backward(arguments); });
}

}  // namespace

void add_embedding(py::module_& module) {
    module.def("embedding_forward", &forward, py::arg("ids"), py::arg("table"), py::arg("out"));
    module.def("embedding_backward", &backward, py::arg("grad_out"), py::arg("ids"), py::arg("grad_table"));
}

}  // namespace pygpt::bindings
