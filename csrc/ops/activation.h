// The activations that products of matrices apply to their results.
#ifndef PYGPT_OPS_ACTIVATION_H
#define PYGPT_OPS_ACTIVATION_H

#include <cstdint>
#include <optional>
#include <string>

namespace pygpt {

enum class Activation : std::int8_t {
    none,
    gelu,       // x·Φ(x), Φ the normal distribution function. Hendrycks, Gimpel, "Gaussian error linear units", 2016
    gelu_tanh,  // x/2·(1 + tanh(sqrt(2/π)·(x + 0.044715·x³))), the same paper's approximation
    relu,       // max(x, 0)
};

// By its name in Python; nothing: none. Raises ValueError for any other name.
Activation activation_named(const std::optional<std::string>& name);

}  // namespace pygpt

#endif
