#include "ops/adamw.h"

#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/call.h"
#include "core/error.h"

namespace pygpt::bindings {
namespace {

void step(const py::list& params, const py::list& grads, const py::list& exp_avgs, const py::list& exp_avg_sqs,
          const py::list& masters, const py::list& steps, py::handle lr, double beta1, double beta2, double eps,
          double weight_decay, py::handle grad_scale) {
    Call call;
    const std::size_t count = params.size();
    if (grads.size() != count || exp_avgs.size() != count || exp_avg_sqs.size() != count || masters.size() != count ||
        steps.size() != count) {
        throw ValueError(text("params, grads, exp_avgs, exp_avg_sqs, masters and steps must have one length, but have ",
                              count, ", ", grads.size(), ", ", exp_avgs.size(), ", ", exp_avg_sqs.size(), ", ",
                              masters.size(), " and ", steps.size()));
    }
    const bool number = py::isinstance<py::float_>(lr) || py::isinstance<py::int_>(lr);
    adamw::Step arguments{
        .parameters = {},
        .lr = number ? lr.cast<double>() : 0,
        .beta1 = beta1,
        .beta2 = beta2,
        .eps = eps,
        .weight_decay = weight_decay,
        .grad_scale = call.optional_input(grad_scale, "grad_scale"),
        .rate = number ? std::nullopt : std::optional(call.input(lr, "lr")),
    };
    arguments.parameters.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
        arguments.parameters.push_back({
            .param = call.output(params[i], "param"),
            .grad = call.input(grads[i], "grad"),
            .exp_avg = call.output(exp_avgs[i], "exp_avg"),
            .exp_avg_sq = call.output(exp_avg_sqs[i], "exp_avg_sq"),
            .master = call.optional_output(masters[i], "master"),
            .step = number ? steps[i].cast<double>() : 0,
            .counted = number ? std::nullopt : std::optional(call.input(steps[i], "step")),
        });
    }
    call.run([&] { adamw::step(arguments); });
}

}  // namespace

void add_adamw(py::module_& module) {
    module.def("adamw_step", &step, py::arg("params"), py::arg("grads"), py::arg("exp_avgs"), py::arg("exp_avg_sqs"),
               py::arg("masters"), py::arg("steps"), py::arg("lr"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"),
               py::arg("weight_decay"), py::arg("grad_scale"));
}

}  // namespace pygpt::bindings
