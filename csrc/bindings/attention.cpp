#include "ops/attention.h"

#include "bindings/bindings.h"
#include "bindings/tensors.h"
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
    template <void (*run)(Problem, Tensors...)>
    static void call(py::handle q, py::handle k, py::handle v, py::handle causal, py::handle scale,
                     py::handle key_lengths, py::handle query_start, py::handle cu_seqlens, py::handle mask,
                     py::handle bias, py::handle window, py::handle softcap, py::handle dropout, py::handle seed,
                     Tensors... tensors) {
        run({.q = view(q, "q"),
             .k = view(k, "k"),
             .v = view(v, "v"),
             .causal = causal_of(causal),
             .scale = number(scale, "scale"),
             .key_lengths = optional_view(key_lengths, "key_lengths"),
             .query_start = optional_view(query_start, "query_start"),
             .cu_seqlens = optional_view(cu_seqlens, "cu_seqlens"),
             .mask = optional_view(mask, "mask"),
             .bias = optional_view(bias, "bias"),
             .window = optional(integer, window, "window"),
             .softcap = optional(number, softcap, "softcap"),
             .dropout = number(dropout, "dropout"),
             .seed = optional_view(seed, "seed")},
            tensors...);
    }
};

void forward(Problem problem, py::handle out, py::handle lse) {
    const attention::Forward arguments{problem, view(out, "out"), view(lse, "lse")};
    call([&] { attention::forward(arguments); });
}

void weights(Problem problem, py::handle lse, py::handle out) {
    const attention::Weights arguments{problem, view(lse, "lse"), view(out, "weights")};
    call([&] { attention::weights(arguments); });
}

attention::Gradients gradients(const Problem& problem, py::handle grad_out, py::handle grad_lse, py::handle out,
                               py::handle lse) {
    return {problem, view(grad_out, "grad_out"), optional_view(grad_lse, "grad_lse"), view(out, "out"),
            view(lse, "lse")};
}

void backward(Problem problem, py::handle grad_out, py::handle grad_lse, py::handle out, py::handle lse,
              py::handle grad_q, py::handle grad_k, py::handle grad_v) {
    const attention::Backward arguments{gradients(problem, grad_out, grad_lse, out, lse), view(grad_q, "grad_q"),
                                        view(grad_k, "grad_k"), view(grad_v, "grad_v")};
    call([&] { attention::backward(arguments); });
}

void bias_backward(Problem problem, py::handle grad_out, py::handle grad_lse, py::handle out, py::handle lse,
                   py::handle grad_bias) {
    const attention::BiasBackward arguments{gradients(problem, grad_out, grad_lse, out, lse),
                                            view(grad_bias, "grad_bias")};
    call([&] { attention::bias_backward(arguments); });
}

// Defines a function of the problem's parameters and those named.
template <auto run, class... Names, class... Tensors>
void define(py::module_& module, const char* name, void (*)(Problem, Tensors...), Names... names) {
    module.def(name, &Function<Tensors...>::template call<run>, py::arg("q"), py::arg("k"), py::arg("v"),
               py::arg("causal"), py::arg("scale"), py::arg("key_lengths"), py::arg("query_start"),
               py::arg("cu_seqlens"), py::arg("mask"), py::arg("bias"), py::arg("window"), py::arg("softcap"),
               py::arg("dropout"), py::arg("seed"), py::arg(names)...);
}

}  // namespace

void add_attention(py::module_& module) {
    define<&forward>(module, "attention_forward", &forward, "out", "lse");
    define<&weights>(module, "attention_weights", &weights, "lse", "weights");
    define<&backward>(module, "attention_backward", &backward, "grad_out", "grad_lse", "out", "lse", "grad_q", "grad_k",
                      "grad_v");
    define<&bias_backward>(module, "attention_bias_backward", &bias_backward, "grad_out", "grad_lse", "out", "lse",
                           "grad_bias");
}

}  // namespace pygpt::bindings
