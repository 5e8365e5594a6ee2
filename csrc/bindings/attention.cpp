#include "ops/attention.h"

#include "bindings/bindings.h"
#include "bindings/call.h"
#include "core/error.h"

namespace pygpt::bindings {
namespace {

using attention::Problem;

std::optional<attention::Causal> causal_of(py::handle value) {
    if (value.is_none()) return std::nullopt;
    const std::string name = py::str(value);
    if (name == "bottom_right") return attention::Causal::bottom_right;
    if (name == "top_left") return attention::Causal::top_left;
    throw ValueError(text("causal must be True, False, \"bottom_right\" or \"top_left\", but is \"", name, "\""));
}

// The Python functions begin with the same parameters, those of `problem`.
template <class... Tensors>
struct Function {
    template <void (*run)(Call&, Problem, Tensors...)>
    static void from_python(py::handle q, py::handle k, py::handle v, py::handle causal, py::handle scale,
                            py::handle key_lengths, py::handle query_start, py::handle cu_seqlens, py::handle mask,
                            py::handle bias, py::handle window, py::handle softcap, py::handle dropout, py::handle seed,
                            Tensors... tensors) {
        Call call;
        run(call,
            {.q = call.input(q, "q"),
             .k = call.input(k, "k"),
             .v = call.input(v, "v"),
             .causal = causal_of(causal),
             .scale = number(scale, "scale"),
             .key_lengths = call.optional_input(key_lengths, "key_lengths"),
             .query_start = call.optional_input(query_start, "query_start"),
             .cu_seqlens = call.optional_input(cu_seqlens, "cu_seqlens"),
             .mask = call.optional_input(mask, "mask"),
             .bias = call.optional_input(bias, "bias"),
             .window = optional(integer, window, "window"),
             .softcap = optional(number, softcap, "softcap"),
             .dropout = number(dropout, "dropout"),
             .seed = call.optional_input(seed, "seed")},
            tensors...);
    }
};

void forward(Call& call, Problem problem, py::handle out, py::handle lse, bool decode) {
    const attention::Forward arguments{problem, call.output(out, "out"), call.output(lse, "lse"), decode};
    call.run(attention::forward, arguments);
}

void weights(Call& call, Problem problem, py::handle lse, py::handle out) {
    const attention::Weights arguments{problem, call.input(lse, "lse"), call.output(out, "weights")};
    call.run([&] { attention::weights(arguments); });
}

attention::Gradients gradients(Call& call, const Problem& problem, py::handle grad_out, py::handle grad_lse,
                               py::handle out, py::handle lse) {
    return {problem, call.input(grad_out, "grad_out"), call.optional_input(grad_lse, "grad_lse"),
            call.input(out, "out"), call.input(lse, "lse")};
}

void backward(Call& call, Problem problem, py::handle grad_out, py::handle grad_lse, py::handle out, py::handle lse,
              py::handle grad_q, py::handle grad_k, py::handle grad_v) {
    const attention::Backward arguments{gradients(call, problem, grad_out, grad_lse, out, lse),
                                        call.output(grad_q, "grad_q"), call.output(grad_k, "grad_k"),
                                        call.output(grad_v, "grad_v")};
    call.run([&] { attention::backward(arguments); });
}

void bias_backward(Call& call, Problem problem, py::handle grad_out, py::handle grad_lse, py::handle out,
                   py::handle lse, py::handle grad_bias) {
    const attention::BiasBackward arguments{gradients(call, problem, grad_out, grad_lse, out, lse),
                                            call.output(grad_bias, "grad_bias")};
    call.run([&] { attention::bias_backward(arguments); });
}

// Defines a function of the problem's parameters and those named.
template <auto run, class... Names, class... Tensors>
void define(py::module_& module, const char* name, void (*)(Call&, Problem, Tensors...), Names... names) {
    module.def(name, &Function<Tensors...>::template from_python<run>, py::arg("q"), py::arg("k"), py::arg("v"),
               py::arg("causal"), py::arg("scale"), py::arg("key_lengths"), py::arg("query_start"),
               py::arg("cu_seqlens"), py::arg("mask"), py::arg("bias"), py::arg("window"), py::arg("softcap"),
               py::arg("dropout"), py::arg("seed"), py::arg(names)...);
}

}  // namespace

void add_attention(py::module_& module) {
    define<&forward>(module, "attention_forward", &forward, "out", "lse", "decode");
    define<&weights>(module, "attention_weights", &weights, "lse", "weights");
    define<&backward>(module, "attention_backward", &backward, "grad_out", "grad_lse", "out", "lse", "grad_q", "grad_k",
                      "grad_v");
    define<&bias_backward>(module, "attention_bias_backward", &bias_backward, "grad_out", "grad_lse", "out", "lse",
                           "grad_bias");
}

}  // namespace pygpt::bindings
