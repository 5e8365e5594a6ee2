#include "ops/attention.h"

#include <cmath>
#include <limits>

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"

namespace pygpt::attention {
namespace {

using cpu::Isa;

// What Hopper's kernels leave to the others.
constexpr const char* left_by_hopper =
    "mask, bias, dropout, a scale that is not positive; backward: head_dim above 128";

template <class Arguments>
Reason refuses_on_hopper(const Arguments& a) {
    const Problem& p = a.problem;
    if (p.mask) return "it takes no mask";
    if (p.bias) return "it takes no bias";
    if (p.dropout > 0) return "it takes no dropout";
    if (!(static_cast<float>(p.scale) > 0)) return text("it takes a positive scale, not ", p.scale);
    return "";
}
Reason refuses_backward_on_hopper(const Backward& a) {
    constexpr int largest = 128;  // the sums of two gradients fill a thread's registers
    if (a.problem.D > largest) return text("its backward takes a head_dim of 1 to ", largest, ", not ", a.problem.D);
    return refuses_on_hopper(a);
}
Reason refuses_weights(const Weights&) {
    return "it gives no weights";
}
Reason refuses_bias(const BiasBackward&) {
    return "it takes no bias";
}

const Implementation<Forward> forward_table[] = {
    {"cuda_sm80_decode", cuda::refuses_decode<80>, cuda::attention_decode},
    {"cuda_sm90", cuda::refuses_all_but_16_bit<90>, cuda::attention_forward_sm90, refuses_on_hopper<Forward>,
     left_by_hopper},
    {"cuda_sm80", cuda::refuses<80>, cuda::attention_forward},
    {"cpu_avx512_bf16", cpu::refuses<Isa::avx512_bf16>, cpu::attention_forward<Isa::avx512_bf16>},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::attention_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::attention_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::attention_forward<Isa::scalar>},
};
const Implementation<Weights> weights_table[] = {
    {"cuda_sm80_decode", cuda::refuses_decode<80>, cuda::attention_weights},
    {"cuda_sm90", cuda::refuses_all_but_16_bit<90>, nullptr, refuses_weights},
    {"cuda_sm80", cuda::refuses<80>, cuda::attention_weights},
    {"cpu_avx512_bf16", cpu::refuses<Isa::avx512_bf16>, cpu::attention_weights<Isa::avx512_bf16>},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::attention_weights<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::attention_weights<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::attention_weights<Isa::scalar>},
};
const Implementation<Backward> backward_table[] = {
    {"cuda_sm80_decode", cuda::refuses_decode<80>, cuda::attention_backward},
    {"cuda_sm90", cuda::refuses_all_but_16_bit<90>, cuda::attention_backward_sm90, refuses_backward_on_hopper},
    {"cuda_sm80", cuda::refuses<80>, cuda::attention_backward},
    {"cpu_avx512_bf16", cpu::refuses<Isa::avx512_bf16>, cpu::attention_backward<Isa::avx512_bf16>},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::attention_backward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::attention_backward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::attention_backward<Isa::scalar>},
};
const Implementation<BiasBackward> bias_backward_table[] = {
    {"cuda_sm80_decode", cuda::refuses_decode<80>, cuda::attention_bias_backward},
    {"cuda_sm90", cuda::refuses_all_but_16_bit<90>, nullptr, refuses_bias},
    {"cuda_sm80", cuda::refuses<80>, cuda::attention_bias_backward},
    {"cpu_avx512_bf16", cpu::refuses<Isa::avx512_bf16>, cpu::attention_bias_backward<Isa::avx512_bf16>},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::attention_bias_backward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::attention_bias_backward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::attention_bias_backward<Isa::scalar>},
};
Op op("attention", forward_table);

constexpr std::int64_t largest_head_dim = 256;
constexpr std::int64_t largest_time = std::int64_t{1} << 31;  // positions are 32-bit words of dropout's counter

void unit_stride(const check::Named& argument) {
    const TensorView& tensor = argument.tensor;
    if (tensor.shape[3] > 1 && tensor.strides[3] != 1 && elements(tensor) > 0) {
        throw ValueError(text(argument.name, "'s last dimension must have stride 1, but has ", tensor.strides[3]));
    }
}

void like_q(const check::Named& argument, const Problem& p) {
    check::dtype_is(argument, p.q.dtype, "the dtype of q");
    check::on_device(argument, p.q.device, "where q is");
    check::shape_is(argument, {p.B, p.T, p.H, p.D}, "the shape of q");
}

// Of int64, where q is.
const std::int64_t* integers(const check::Named& argument, std::int64_t count, const char* what, const Problem& p) {
    check::dtype_is(argument, DType::int64, what);
    check::on_device(argument, p.q.device, "where q is");
    check::shape_is(argument, {count}, what);
    check::contiguous(argument);
    return static_cast<const std::int64_t*>(argument.tensor.data);
}

// Where values may be looked at.
void each_in(const check::Named& argument, std::int64_t low, std::int64_t high, const char* what) {
    const check::Values all(argument.tensor);
    const auto* values = all.as<std::int64_t>();
    if (!values) return;
    for (std::int64_t i = 0; i < argument.tensor.shape[0]; ++i) {
        if (values[i] >= low && values[i] <= high) continue;
        throw ValueError(
            text(argument.name, "[", i, "] must be ", low, " to ", high, " (", what, "), but is ", values[i]));
    }
}

void documents(const TensorView& cu_seqlens, const Problem& p) {
    if (p.B != 1 || p.T != p.S) {
        throw ValueError(
            text("cu_seqlens needs one row of packed documents, batch 1 and q_time = k_time, but batch is ", p.B,
                 ", q_time ", p.T, " and k_time ", p.S));
    }
    if (p.key_lengths) throw ValueError("cu_seqlens and key_lengths cannot be combined: documents have their lengths");
    if (p.query_start) throw ValueError("cu_seqlens and query_start cannot be combined: documents are whole");
    const check::Values all(cu_seqlens);
    const auto* bounds = all.as<std::int64_t>();
    if (!bounds) return;
    const std::int64_t last = cu_seqlens.shape[0] - 1;
    if (bounds[0] != 0 || bounds[last] != p.T) {
        throw ValueError(
            text("cu_seqlens must go from 0 to q_time, ", p.T, ", but goes from ", bounds[0], " to ", bounds[last]));
    }
    for (std::int64_t i = 0; i < last; ++i) {
        if (bounds[i] <= bounds[i + 1]) continue;
        throw ValueError(text("cu_seqlens must not decrease, but cu_seqlens[", i, "] is ", bounds[i],
                              " and cu_seqlens[", i + 1, "] is ", bounds[i + 1]));
    }
}

KeyRange key_range(const Problem& p) {
    KeyRange keys{};
    keys.batch = p.B;
    keys.q_time = p.T;
    keys.k_time = p.S;
    const std::int64_t within = p.window ? std::min(*p.window - 1, KeyRange::unlimited) : KeyRange::unlimited;
    keys.before = within;
    keys.after = p.causal ? 0 : within;
    // Without causal, a window is around the same place as under bottom_right.
    const bool at_the_end = p.causal ? *p.causal == Causal::bottom_right : p.window.has_value();
    keys.diagonal = at_the_end ? p.S - p.T : 0;
    if (p.query_start) {
        keys.query_start = integers({"query_start", *p.query_start}, p.B, "one place for each row of q", p);
        each_in({"query_start", *p.query_start}, 0, largest_time - 1, "a place on the key axis");
    }
    if (p.key_lengths) {
        keys.key_lengths = integers({"key_lengths", *p.key_lengths}, p.B, "one length for each row of k", p);
        each_in({"key_lengths", *p.key_lengths}, 0, p.S, "at most k_time");
    }
    if (p.cu_seqlens) {
        check::dimensions_are({"cu_seqlens", *p.cu_seqlens}, 1, "(documents + 1,)");
        keys.documents = p.cu_seqlens->shape[0] - 1;
        if (keys.documents < 0) throw ValueError("cu_seqlens must have at least one element, 0, but is empty");
        keys.cu_seqlens =
            integers({"cu_seqlens", *p.cu_seqlens}, keys.documents + 1, "where each document begins, and the end", p);
        documents(*p.cu_seqlens, p);
    }
    return keys;
}

// The tensor seen as (B, H, T, S), with stride 0 where it is broadcast.
TensorView broadcast(const check::Named& argument, const Problem& p) {
    check::on_device(argument, p.q.device, "where q is");
    const TensorView& tensor = argument.tensor;
    TensorView out = tensor;
    out.dimensions = 4;
    const std::int64_t shape[] = {p.B, p.H, p.T, p.S};
    for (int i = 0; i < 4; ++i) {
        const int from = i + tensor.dimensions - 4;
        const std::int64_t size = from < 0 ? 1 : tensor.shape[from];
        if (tensor.dimensions > 4 || (size != 1 && size != shape[i])) {
            throw ValueError(text(argument.name, " must broadcast to (batch, heads, q_time, k_time) = (", p.B, ", ",
                                  p.H, ", ", p.T, ", ", p.S, "), but has shape ", shape_text(tensor)));
        }
        out.shape[i] = shape[i];
        out.strides[i] = size == 1 ? 0 : tensor.strides[from];
    }
    return out;
}

// Scores are computed in float32 (or float64), in units of log 2: what that makes of scale and softcap is finite too.
void check_scores(const Problem& p) {
    const double largest =
        p.q.dtype == DType::float64 ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
    const auto fits = [&](double value) { return std::abs(value) <= largest / 2; };
    if (!fits(p.scale)) {
        throw ValueError(text("scale must be finite, and at most ", largest / 2, ", but is ", p.scale));
    }
    if (!p.softcap) return;
    if (!(*p.softcap > 0 && fits(*p.softcap))) {
        throw ValueError(text("softcap must be positive and at most ", largest / 2, ", or None, but is ", *p.softcap));
    }
    if (!fits(1 / *p.softcap) || !fits(p.scale / *p.softcap)) {
        throw ValueError(text("softcap is too small for a scale of ", p.scale, ": it is ", *p.softcap));
    }
}

void check_problem(Problem& p) {
    check::dtype_in({"q", p.q}, {DType::float32, DType::bfloat16, DType::float16, DType::float64});
    check::dimensions_are({"q", p.q}, 4, "(batch, q_time, heads, head_dim)");
    p.B = p.q.shape[0], p.T = p.q.shape[1], p.H = p.q.shape[2], p.D = p.q.shape[3];
    check::dimensions_are({"k", p.k}, 4, "(batch, k_time, kv_heads, head_dim)");
    p.S = p.k.shape[1], p.G = p.k.shape[2];
    if (p.D < 1 || p.D > largest_head_dim) {
        throw ValueError(
            text("q must have a head_dim of 1 to ", largest_head_dim, ", but has shape ", shape_text(p.q)));
    }
    if (p.H < 1) throw ValueError(text("q must have at least one head, but has shape ", shape_text(p.q)));
    for (const check::Named& argument : {check::Named{"k", p.k}, check::Named{"v", p.v}}) {
        check::dtype_is(argument, p.q.dtype, "the dtype of q");
        check::on_device(argument, p.q.device, "where q is");
    }
    check::shape_is({"k", p.k}, {p.B, p.S, p.G, p.D}, "batch and head_dim are those of q");
    check::shape_is({"v", p.v}, {p.B, p.S, p.G, p.D}, "the shape of k");
    if (p.G < 1 || p.H % p.G != 0) {
        throw ValueError(text("q's heads must be a multiple of k's kv_heads, but q has ", p.H, " and k has ", p.G));
    }
    if (p.T >= largest_time || p.S >= largest_time) {
        throw ValueError(text("q_time and k_time must be below ", largest_time, ", but are ", p.T, " and ", p.S));
    }
    unit_stride({"q", p.q});
    unit_stride({"k", p.k});
    unit_stride({"v", p.v});
    check_scores(p);
    if (p.window && *p.window < 1) {
        throw ValueError(text("window must be at least 1, or None, but is ", *p.window));
    }
    p.keys = key_range(p);
    if (!(p.dropout >= 0 && p.dropout <= 1)) throw ValueError(text("dropout must be 0 to 1, but is ", p.dropout));
    if (p.dropout > 0) {
        if (!p.seed) throw ValueError("dropout needs a seed");
        if (p.seed->dimensions == 0) {
            check::dtype_is({"seed", *p.seed}, DType::int64, "a seed");
            check::on_device({"seed", *p.seed}, p.q.device, "where q is");
        } else {
            integers({"seed", *p.seed}, p.keys.sequences(), "one seed, or one for each row or document", p);
        }
    }
    if (p.mask) {
        check::dtype_is({"mask", *p.mask}, DType::boolean, "true where a key may be seen");
        p.mask = broadcast({"mask", *p.mask}, p);
    }
    if (p.bias) {
        if (p.bias->dtype != DType::float32)
            check::dtype_is({"bias", *p.bias}, p.q.dtype, "the dtype of q, or float32");
        p.bias = broadcast({"bias", *p.bias}, p);
    }
}

void statistics(const check::Named& argument, const Problem& p) {
    check::dtype_is(argument, p.q.dtype == DType::float64 ? DType::float64 : DType::float32,
                    "what statistics are kept in");
    check::on_device(argument, p.q.device, "where q is");
    check::shape_is(argument, {p.B, p.H, p.T}, "one value for each query of each head");
    check::contiguous(argument);
}

void check_gradients(Gradients& a) {
    check_problem(a.problem);
    const Problem& p = a.problem;
    like_q({"grad_out", a.grad_out}, p);
    unit_stride({"grad_out", a.grad_out});
    if (a.grad_lse) statistics({"grad_lse", *a.grad_lse}, p);
    like_q({"out", a.out}, p);
    check::contiguous({"out", a.out});
    statistics({"lse", a.lse}, p);
}

Operands operands(const Problem& p, bool decode = false) {
    return {p.q.dtype, p.q.device, decode};
}

}  // namespace

void forward(Forward a) {
    check_problem(a.problem);
    like_q({"out", a.out}, a.problem);
    check::contiguous({"out", a.out});
    statistics({"lse", a.lse}, a.problem);
    op.run(forward_table, operands(a.problem, a.decode), a);
}

void weights(Weights a) {
    check_problem(a.problem);
    const Problem& p = a.problem;
    statistics({"lse", a.lse}, p);
    check::dtype_is({"weights", a.weights}, p.q.dtype, "the dtype of q");
    check::on_device({"weights", a.weights}, p.q.device, "where q is");
    check::shape_is({"weights", a.weights}, {p.B, p.H, p.T, p.S}, "one value for each query and key");
    check::contiguous({"weights", a.weights});
    op.run(weights_table, operands(p), a);
}

void backward(Backward a) {
    check_gradients(a);
    const Problem& p = a.problem;
    like_q({"grad_q", a.grad_q}, p);
    unit_stride({"grad_q", a.grad_q});
    for (const check::Named& argument : {check::Named{"grad_k", a.grad_k}, check::Named{"grad_v", a.grad_v}}) {
        check::dtype_is(argument, p.q.dtype, "the dtype of q");
        check::on_device(argument, p.q.device, "where q is");
        check::shape_is(argument, {p.B, p.S, p.G, p.D}, "the shape of k");
        unit_stride(argument);
    }
    op.run(backward_table, operands(p), a);
}

void bias_backward(BiasBackward a) {
    if (!a.problem.bias) throw ValueError("bias_backward needs a bias");
    const TensorView bias = *a.problem.bias;
    check_gradients(a);
    if (!same_shape(a.grad_bias, bias)) {
        throw ValueError(
            text("grad_bias must have the shape of bias, ", shape_text(bias), ", but has ", shape_text(a.grad_bias)));
    }
    check::dtype_is({"grad_bias", a.grad_bias}, bias.dtype, "the dtype of bias");
    check::contiguous({"grad_bias", a.grad_bias});
    a.grad_bias = broadcast({"grad_bias", a.grad_bias}, a.problem);
    op.run(bias_backward_table, operands(a.problem), a);
}

}  // namespace pygpt::attention
