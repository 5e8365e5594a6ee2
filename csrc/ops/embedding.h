// embedding: out[i] = table[ids[i]]; its backward adds each row of grad_out to the row of grad_table that was read.
//
// An id out of range is an error on the CPU; on a CUDA device its row is NaN, and it has no gradient.
#ifndef PYGPT_OPS_EMBEDDING_H
#define PYGPT_OPS_EMBEDDING_H

#include "core/tensor_view.h"

namespace pygpt::embedding {

// All tensors contiguous. N = the number of ids, V = vocabulary, C = width.
struct Forward {
    TensorView ids;    // (...), int64, each in 0..V-1
    TensorView table;  // (V, C)
    TensorView out;    // (..., C), table's dtype
    // set by the check
    std::int64_t rows = 0;  // N
    std::int64_t width = 0;
};

struct Backward {
    TensorView grad_out;    // (..., C)
    TensorView ids;         // (...)
    TensorView grad_table;  // (V, C), grad_out's dtype; every row is written, in float32 sums in order of position
    // set by the check
    std::int64_t rows = 0;
    std::int64_t width = 0;
    std::int64_t vocabulary = 0;
};

void forward(Forward arguments);
void backward(Backward arguments);

}  // namespace pygpt::embedding

#endif
