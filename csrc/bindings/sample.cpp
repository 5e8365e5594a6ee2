#include "ops/sample.h"

#include "bindings/bindings.h"
#include "bindings/call.h"

namespace pygpt::bindings {
namespace {

void forward(py::handle logits, py::handle temperature, py::handle top_k, py::handle top_p, py::handle min_p,
             py::handle seeds, py::handle positions, py::handle tokens, py::handle logprobs) {
    Call call;
    const sample::Forward arguments{
        .logits = call.input(logits, "logits"),
        .temperature = number(temperature, "temperature"),
        .top_k = optional(integer, top_k, "top_k"),
        .top_p = optional(number, top_p, "top_p"),
        .min_p = optional(number, min_p, "min_p"),
        .seeds = call.input(seeds, "seeds"),
        .positions = call.input(positions, "positions"),
        .tokens = call.output(tokens, "tokens"),
        .logprobs = call.output(logprobs, "logprobs"),
    };
    call.run(sample::forward, arguments);
}

}  // namespace

void add_sample(py::module_& module) {
    module.def("sample_forward", &forward, py::arg("logits"), py::arg("temperature"), py::arg("top_k"),
               py::arg("top_p"), py::arg("min_p"), py::arg("seeds"), py::arg("positions"), py::arg("tokens"),
               py::arg("logprobs"));
}

}  // namespace pygpt::bindings
