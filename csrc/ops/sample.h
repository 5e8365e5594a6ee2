// sample: draws one token for each row of logits, and says how likely the model held it.
//
// Tokens stand in order of (logit descending, id ascending). With weights w = exp((logit - largest) / temperature),
// each of these in turn keeps a beginning of that order:
//   top_k  the first k
//   top_p  the smallest beginning whose weights reach p of all that top_k left (the token that crosses included)
//   min_p  those whose weight is at least min_p of the largest
// and the token is drawn from the weights that remain. Temperature 0 takes the first token. The draw inverts the
// cumulative sum in order of id with one uniform number, a function of (seed, position): it depends on the row alone,
// and costs one random number a row where a Gumbel draw costs one (and a logarithm) a token.
//
// From a row that holds NaN, +inf, or -inf alone, nothing can be drawn: kernels give it token 0 and log-probability
// NaN, and on the CPU that is an error.
//
// Holtzman et al., "The curious case of neural text degeneration", 2020 (top_p); Nguyen et al., 2024 (min_p).
#ifndef PYGPT_OPS_SAMPLE_H
#define PYGPT_OPS_SAMPLE_H

#include <optional>

#include "core/tensor_view.h"

namespace pygpt::sample {

// All tensors contiguous.
struct Forward {
    TensorView logits;   // (B, V), float32 or float64; -inf for a token that must not come
    double temperature;  // at least 0
    std::optional<std::int64_t> top_k;
    std::optional<double> top_p;
    std::optional<double> min_p;
    TensorView seeds;      // (B,), int64
    TensorView positions;  // (B,), int64
    TensorView tokens;     // (B,), int64
    TensorView logprobs;   // (B,), the dtype of logits: log softmax(logits)[token], before all of the above
    // set by the check
    std::int64_t rows = 0;
    std::int64_t vocabulary = 0;
};

void forward(Forward arguments);

}  // namespace pygpt::sample

#endif
