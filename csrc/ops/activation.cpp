#include "ops/activation.h"

#include "core/error.h"

namespace pygpt {

Activation activation_named(const std::optional<std::string>& name) {
    if (!name) return Activation::none;
    if (*name == "gelu") return Activation::gelu;
    if (*name == "gelu_tanh") return Activation::gelu_tanh;
    if (*name == "relu") return Activation::relu;
    throw ValueError(text("activation must be None, \"gelu\", \"gelu_tanh\" or \"relu\", but is \"", *name, "\""));
}

}  // namespace pygpt
