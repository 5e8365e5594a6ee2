// gated_product: out = activation(gate) · up, element by element: the middle of a feed-forward network with a gate.
//
// Shazeer, "GLU Variants Improve Transformer", 2020, eq. 5 and 6.
#ifndef PYGPT_OPS_GATED_PRODUCT_H
#define PYGPT_OPS_GATED_PRODUCT_H

#include <cstdint>
#include <string>

#include "core/tensor_view.h"

namespace pygpt::gated_product {

enum class Gate : std::int8_t {
    silu,       // x·σ(x), σ the logistic function
    gelu_tanh,  // as in ops/activation.h
};

Gate gate_named(const std::string& name);  // Raises: ValueError

// All tensors contiguous.
struct Forward {
    TensorView gate;  // any shape
    TensorView up;    // like gate
    Gate activation;
    TensorView out;  // like gate
};

struct Backward {
    TensorView grad_out, gate, up;  // like gate
    Gate activation;
    TensorView grad_gate, grad_up;  // like gate
};

void forward(Forward arguments);
void backward(Backward arguments);

}  // namespace pygpt::gated_product

#endif
