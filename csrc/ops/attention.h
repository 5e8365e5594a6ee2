// attention: softmax over the keys of scale · q·k, times the values, with all of its options in one op.
//
// Vaswani et al., "Attention Is All You Need", 2017, eq. 1. The score of query i and key j of one head is
//
//     x = scale · q_i·k_j;   x = softcap · tanh(x / softcap);   x += bias;   hidden keys: x = -inf
//     p_j = exp(x_j - lse),  lse = log Σ exp(x_j);   out_i = Σ dropout(p_j) · v_j
//
// A query that sees no key gives zeros, lse -inf, and no gradient. No tensor of T × S elements is ever held, but for
// what the caller brings or asks for (mask, bias, its gradient, weights). lse is kept for the backward, which computes
// the weights again (Dao et al., "FlashAttention", 2022).
//
// Query head h reads kv head h / (H / G). Hidden memory, such as the unwritten part of a cache, may hold anything.
#ifndef PYGPT_OPS_ATTENTION_H
#define PYGPT_OPS_ATTENTION_H

#include <optional>

#include "core/tensor_view.h"
#include "ops/attention_keys.h"

namespace pygpt::attention {

enum class Causal {
    bottom_right,  // the last query's place is the last key
    top_left,      // the first query's place is the first key
};

// What all directions share. The last dimension of q, k, v has stride 1; the others may have any.
struct Problem {
    TensorView q;     // (B, T, H, D)
    TensorView k, v;  // (B, S, G, D)
    std::optional<Causal> causal;
    double scale;
    std::optional<TensorView> key_lengths;  // (B,) int64, 0 to S
    std::optional<TensorView> query_start;  // (B,) int64: the place of each row's first query on the key axis
    std::optional<TensorView> cu_seqlens;   // (documents + 1,) int64, from 0 to S, for B = 1 and T = S
    std::optional<TensorView> mask;         // bool, broadcasts to (B, H, T, S); true: may be seen
    std::optional<TensorView> bias;         // q's dtype or float32, broadcasts to (B, H, T, S)
    std::optional<std::int64_t> window;     // the newest keys that the diagonal allows
    std::optional<double> softcap;
    double dropout;                  // the probability that a weight is dropped
    std::optional<TensorView> seed;  // int64: () or one for each sequence; present with dropout > 0

    // set by the check; mask and bias then have the shape (B, H, T, S), with stride 0 where they broadcast
    std::int64_t B = 0, T = 0, S = 0, H = 0, G = 0, D = 0;
    KeyRange keys{};
};

struct Forward {
    Problem problem;
    TensorView out;  // (B, T, H, D), contiguous
    TensorView lse;  // (B, H, T), contiguous: float32, float64 for float64
    bool decode;     // kernels for few queries may run, whose bits are not training's
};

// The weights p, before dropout.
struct Weights {
    Problem problem;
    TensorView lse;      // (B, H, T)
    TensorView weights;  // (B, H, T, S), q's dtype, contiguous
};

struct Gradients {
    Problem problem;
    TensorView grad_out;                 // (B, T, H, D), last dimension of stride 1
    std::optional<TensorView> grad_lse;  // (B, H, T)
    TensorView out;                      // (B, T, H, D)
    TensorView lse;                      // (B, H, T)
};
struct Backward : Gradients {
    TensorView grad_q;          // (B, T, H, D), last dimension of stride 1, as in the following
    TensorView grad_k, grad_v;  // (B, S, G, D)
};
struct BiasBackward : Gradients {
    TensorView grad_bias;  // like bias, contiguous; after the check (B, H, T, S) with strides 0, like bias
};

void forward(Forward arguments);
void weights(Weights arguments);
void backward(Backward arguments);
void bias_backward(BiasBackward arguments);

}  // namespace pygpt::attention

#endif
