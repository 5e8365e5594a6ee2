// One function per op, and one for sessions: adds their Python functions to the module.
#ifndef PYGPT_BINDINGS_BINDINGS_H
#define PYGPT_BINDINGS_BINDINGS_H

#include <pybind11/pybind11.h>

namespace pygpt::bindings {

void add_machine(pybind11::module_& module);
void add_adamw(pybind11::module_& module);
void add_add(pybind11::module_& module);
void add_attention(pybind11::module_& module);
void add_cross_entropy(pybind11::module_& module);
void add_dropout(pybind11::module_& module);
void add_embedding(pybind11::module_& module);
void add_feed_forward(pybind11::module_& module);
void add_gated_product(pybind11::module_& module);
void add_grad_norm(pybind11::module_& module);
void add_layer_norm(pybind11::module_& module);
void add_linear(pybind11::module_& module);
void add_linear_cross_entropy(pybind11::module_& module);
void add_quantized_linear(pybind11::module_& module);
void add_rms_norm(pybind11::module_& module);
void add_rotary(pybind11::module_& module);
void add_sample(pybind11::module_& module);
void add_session(pybind11::module_& module);

}  // namespace pygpt::bindings

#endif
