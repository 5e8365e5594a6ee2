// PYGPT_TRACE=1: what every call of an op does, on standard error. A line says op, implementation, dtype, and the
// tensors with their shapes; each kernel that a GPU then runs has a line with its grid and shared memory. A decoding
// step that is replayed tells no shapes: it did when it was recorded.
#ifndef PYGPT_CORE_TRACE_H
#define PYGPT_CORE_TRACE_H

#include <string>

#include "core/tensor_view.h"

namespace pygpt::trace {

bool on();

// The tensors of the call that this thread makes next: of a new one, and one after the other.
void begin();
void argument(const char* name, const TensorView& tensor);

// Lines of a call, and of what belongs to it.
void call(const std::string& op);
void detail(const std::string& what);

}  // namespace pygpt::trace

#endif
