// The launchers of CUDA kernels, an op's each defined by the file of its name under csrc/cuda. They are weak: in a
// build without a CUDA part their addresses are null, and the entries that hold them refuse everything
// (cuda/features.h).
#ifndef PYGPT_CUDA_KERNELS_H
#define PYGPT_CUDA_KERNELS_H

#include "ops/adamw.h"
#include "ops/add.h"
#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/dropout.h"
#include "ops/embedding.h"
#include "ops/feed_forward.h"
#include "ops/gated_product.h"
#include "ops/grad_norm.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/linear_cross_entropy.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"
#include "ops/sample.h"
#include "session/cache.h"

namespace pygpt::cuda {

[[gnu::weak]] void adamw_step(const adamw::Step& arguments);
[[gnu::weak]] void add_forward(const add::Forward& arguments);
[[gnu::weak]] void add_backward(const add::Backward& arguments);
[[gnu::weak]] void attention_forward(const attention::Forward& arguments);
[[gnu::weak]] void attention_decode(const attention::Forward& arguments);
[[gnu::weak]] void attention_forward_sm90(const attention::Forward& arguments);
[[gnu::weak]] void attention_weights(const attention::Weights& arguments);
[[gnu::weak]] void attention_backward(const attention::Backward& arguments);
[[gnu::weak]] void attention_backward_sm90(const attention::Backward& arguments);
[[gnu::weak]] void attention_bias_backward(const attention::BiasBackward& arguments);
[[gnu::weak]] void cross_entropy_forward(const cross_entropy::Forward& arguments);
[[gnu::weak]] void cross_entropy_backward(const cross_entropy::Backward& arguments);
[[gnu::weak]] void dropout_forward(const dropout::Forward& arguments);
[[gnu::weak]] void embedding_forward(const embedding::Forward& arguments);
[[gnu::weak]] void embedding_backward(const embedding::Backward& arguments);
template <int architecture>
[[gnu::weak]] void feed_forward_forward(const feed_forward::Forward& arguments);
[[gnu::weak]] void feed_forward_decode(const feed_forward::Forward& arguments);
template <int architecture>
[[gnu::weak]] void feed_forward_backward(const feed_forward::Backward& arguments);
[[gnu::weak]] void find_places(const session::Places& arguments);
[[gnu::weak]] void gated_product_forward(const gated_product::Forward& arguments);
[[gnu::weak]] void gated_product_backward(const gated_product::Backward& arguments);
[[gnu::weak]] void grad_norm_forward(const grad_norm::Forward& arguments);
[[gnu::weak]] void layer_norm_forward(const layer_norm::Forward& arguments);
[[gnu::weak]] void layer_norm_backward(const layer_norm::Backward& arguments);
template <int architecture>
[[gnu::weak]] void linear_forward(const linear::Forward& arguments);
[[gnu::weak]] void linear_decode(const linear::Forward& arguments);
template <int architecture>
[[gnu::weak]] void linear_backward(const linear::Backward& arguments);
template <int architecture>
[[gnu::weak]] void linear_cross_entropy_forward(const linear_cross_entropy::Forward& arguments);
[[gnu::weak]] void rms_norm_forward(const rms_norm::Forward& arguments);
[[gnu::weak]] void rms_norm_backward(const rms_norm::Backward& arguments);
[[gnu::weak]] void rotary_forward(const rotary::Forward& arguments);
[[gnu::weak]] void sample_forward(const sample::Forward& arguments);
[[gnu::weak]] void store_keys_values(const session::Store& arguments);

}  // namespace pygpt::cuda

#endif
