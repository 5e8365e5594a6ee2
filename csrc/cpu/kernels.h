// The CPU kernels of every op. Each is defined once per instruction set, by the file of the op's name in cpu/kernels/.
#ifndef PYGPT_CPU_KERNELS_H
#define PYGPT_CPU_KERNELS_H

#include "cpu/features.h"
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
#include "ops/quantized_linear.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"
#include "ops/sample.h"

namespace pygpt::cpu {

template <Isa isa>
void adamw_step(const adamw::Step& arguments);

template <Isa isa>
void add_forward(const add::Forward& arguments);
template <Isa isa>
void add_backward(const add::Backward& arguments);

template <Isa isa>
void attention_forward(const attention::Forward& arguments);
template <Isa isa>
void attention_weights(const attention::Weights& arguments);
template <Isa isa>
void attention_backward(const attention::Backward& arguments);
template <Isa isa>
void attention_bias_backward(const attention::BiasBackward& arguments);

template <Isa isa>
void cross_entropy_forward(const cross_entropy::Forward& arguments);
template <Isa isa>
void cross_entropy_backward(const cross_entropy::Backward& arguments);

template <Isa isa>
void dropout_forward(const dropout::Forward& arguments);

template <Isa isa>
void embedding_forward(const embedding::Forward& arguments);
template <Isa isa>
void embedding_backward(const embedding::Backward& arguments);

template <Isa isa>
void feed_forward_forward(const feed_forward::Forward& arguments);
template <Isa isa>
void feed_forward_backward(const feed_forward::Backward& arguments);

template <Isa isa>
void gated_product_forward(const gated_product::Forward& arguments);
template <Isa isa>
void gated_product_backward(const gated_product::Backward& arguments);

template <Isa isa>
void grad_norm_forward(const grad_norm::Forward& arguments);

template <Isa isa>
void layer_norm_forward(const layer_norm::Forward& arguments);
template <Isa isa>
void layer_norm_backward(const layer_norm::Backward& arguments);

template <Isa isa>
void linear_forward(const linear::Forward& arguments);
template <Isa isa>
void linear_backward(const linear::Backward& arguments);
template <Isa isa>
void linear_pack(const linear::Pack& arguments);

template <Isa isa>
void linear_cross_entropy_forward(const linear_cross_entropy::Forward& arguments);

template <Isa isa>
void quantized_linear_forward(const quantized_linear::Forward& arguments);

template <Isa isa>
void rms_norm_forward(const rms_norm::Forward& arguments);
template <Isa isa>
void rms_norm_backward(const rms_norm::Backward& arguments);

template <Isa isa>
void rotary_forward(const rotary::Forward& arguments);

template <Isa isa>
void sample_forward(const sample::Forward& arguments);

}  // namespace pygpt::cpu

#endif
