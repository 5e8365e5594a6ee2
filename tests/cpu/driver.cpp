// The CPU kernels without Python, for the thread sanitizer: every kernel that shares work between threads runs in fp32
// and bf16 on every implementation of its op, on several thread counts, from two calling threads at once and in a
// forked child, and must give the same bytes each time. Results start as NaN: what no task writes does not pass.
// Exit code 0 and the word "ok" if so; the sanitizer ends it otherwise.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/thread_pool.h"
#include "ops/adamw.h"
#include "ops/add.h"
#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/dropout.h"
#include "ops/embedding.h"
#include "ops/feed_forward.h"
#include "ops/gated_product.h"
#include "ops/grad_norm.h"
#include "ops/implementation.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/linear_cross_entropy.h"
#include "ops/quantized_linear.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"
#include "ops/sample.h"

namespace {

using pygpt::DType;
using pygpt::TensorView;
using Shape = std::initializer_list<std::int64_t>;

// A contiguous tensor that owns its memory.
class Tensor {
  public:
    Tensor(DType dtype, Shape shape) : view_{} {
        view_.dtype = dtype;
        view_.device = {pygpt::DeviceType::cpu, 0};
        view_.dimensions = static_cast<int>(shape.size());
        std::copy(shape.begin(), shape.end(), view_.shape);
        std::int64_t stride = 1;
        for (int i = view_.dimensions - 1; i >= 0; --i) {
            view_.strides[i] = stride;
            stride *= view_.shape[i];
        }
        bytes_.assign(static_cast<std::size_t>(stride * pygpt::bytes_of(dtype)), 0xFF);  // NaN in every dtype
    }

    operator TensorView() {
        view_.data = bytes_.data();
        return view_;
    }
    const std::vector<unsigned char>& bytes() const { return bytes_; }

    template <class T>
    void set(std::size_t i, T value) {
        std::memcpy(bytes_.data() + i * sizeof(T), &value, sizeof(T));
    }
    std::size_t elements() const { return bytes_.size() / static_cast<std::size_t>(pygpt::bytes_of(view_.dtype)); }

    bool holds_nan() const {
        for (std::size_t i = 0; i < elements(); ++i) {
            float value = 0;  // bfloat16 is the upper half of a float32
            const std::size_t width = view_.dtype == DType::bfloat16 ? 2 : 4;
            std::memcpy(reinterpret_cast<char*>(&value) + 4 - width, bytes_.data() + i * width, width);
            if (value != value) return true;
        }
        return false;
    }

  private:
    TensorView view_;
    std::vector<unsigned char> bytes_;
};

Tensor normal(DType dtype, Shape shape, unsigned seed) {
    Tensor out(dtype, shape);
    std::mt19937 engine(seed);
    std::normal_distribution<float> values;
    for (std::size_t i = 0; i < out.elements(); ++i) {
        const float value = values(engine);
        if (dtype == DType::float32) {
            out.set(i, value);
        } else {
            std::uint32_t bits;
            std::memcpy(&bits, &value, 4);
            out.set(i, static_cast<std::uint16_t>(bits >> 16));
        }
    }
    return out;
}

Tensor integers(Shape shape, std::int64_t limit, unsigned seed) {
    Tensor out(DType::int64, shape);
    std::mt19937 engine(seed);
    for (std::size_t i = 0; i < out.elements(); ++i) out.set(i, static_cast<std::int64_t>(engine()) % limit);
    return out;
}

Tensor integers(const std::vector<std::int64_t>& values) {
    Tensor out(DType::int64, {static_cast<std::int64_t>(values.size())});
    for (std::size_t i = 0; i < values.size(); ++i) out.set(i, values[i]);
    return out;
}

using Bytes = std::vector<unsigned char>;

// The bytes of results, one after the other; none may hold a NaN.
Bytes joined(std::initializer_list<const Tensor*> results) {
    Bytes out;
    for (const Tensor* result : results) {
        if (result->holds_nan()) {
            std::fputs("driver: a result holds NaN\n", stderr);
            std::exit(1);
        }
        out.insert(out.end(), result->bytes().begin(), result->bytes().end());
    }
    return out;
}

// ---- forward and backward of each op, on fixed random input ----

Bytes adamw(DType dtype) {
    std::vector<Tensor> param, grad, exp_avg, exp_avg_sq, master;
    for (const std::int64_t size : {std::int64_t{30000}, std::int64_t{7}, std::int64_t{20001}}) {
        const auto seed = static_cast<unsigned>(size);
        param.push_back(normal(dtype, {size}, seed));
        grad.push_back(normal(dtype, {size}, seed + 1));
        exp_avg.push_back(normal(DType::float32, {size}, seed + 2));
        exp_avg_sq.push_back(normal(DType::float32, {size}, seed + 3));
        master.push_back(normal(DType::float32, {size}, seed + 4));
        for (std::size_t i = 0; i < exp_avg_sq.back().elements(); ++i) exp_avg_sq.back().set(i, 0.5f);
    }
    std::vector<pygpt::adamw::Parameter> parameters;
    for (std::size_t i = 0; i < param.size(); ++i) {
        pygpt::adamw::Parameter& parameter = parameters.emplace_back();
        parameter.param = param[i];
        parameter.grad = grad[i];
        parameter.exp_avg = exp_avg[i];
        parameter.exp_avg_sq = exp_avg_sq[i];
        if (dtype != DType::float32) parameter.master = master[i];
        parameter.step = 3;
    }
    pygpt::adamw::step({.parameters = parameters,
                        .lr = 0.1,
                        .beta1 = 0.9,
                        .beta2 = 0.99,
                        .eps = 1e-8,
                        .weight_decay = 0.1,
                        .grad_scale = {},
                        .rate = {}});
    Bytes out;
    for (std::size_t i = 0; i < param.size(); ++i) {
        const Bytes each = joined({&param[i], &exp_avg[i], &exp_avg_sq[i], &master[i]});
        out.insert(out.end(), each.begin(), each.end());
    }
    return out;
}

Bytes add(DType dtype) {
    constexpr std::int64_t repeats = 70, width = 1300;
    Tensor x = normal(dtype, {repeats, width}, 1), y = normal(dtype, {width}, 2);
    Tensor out(dtype, {repeats, width}), grad_y(dtype, {width});
    pygpt::add::forward({.x = x, .y = y, .out = out});
    pygpt::add::backward({.grad_out = x, .grad_y = grad_y});
    return joined({&out, &grad_y});
}

Bytes cross_entropy(DType dtype) {
    constexpr std::int64_t rows = 90, vocabulary = 2500;
    Tensor logits = normal(dtype, {rows, vocabulary}, 1), targets = integers({rows}, vocabulary, 2);
    Tensor loss(DType::float32, {}), maximum(DType::float32, {rows}), sum(DType::float32, {rows});
    Tensor grad_loss = normal(DType::float32, {}, 3), grad_logits(dtype, {rows, vocabulary});
    const auto mean = pygpt::cross_entropy::Reduction::mean;
    pygpt::cross_entropy::forward({.logits = logits,
                                   .targets = targets,
                                   .ignore_index = 7,
                                   .reduction = mean,
                                   .loss = loss,
                                   .maximum = maximum,
                                   .sum = sum});
    pygpt::cross_entropy::backward({.grad_loss = grad_loss,
                                    .logits = logits,
                                    .targets = targets,
                                    .maximum = maximum,
                                    .sum = sum,
                                    .ignore_index = 7,
                                    .reduction = mean,
                                    .grad_logits = grad_logits});
    return joined({&loss, &maximum, &sum, &grad_logits});
}

Bytes dropout(DType dtype) {
    Tensor x = normal(dtype, {3, 40000}, 1), seed(DType::int64, {}), out(dtype, {3, 40000});
    seed.set(0, std::int64_t{5});
    pygpt::dropout::forward({.x = x, .seed = seed, .p = 0.25, .out = out});
    return joined({&out});
}

Bytes embedding(DType dtype) {
    constexpr std::int64_t ids_count = 900, vocabulary = 1100, width = 50;
    Tensor ids = integers({ids_count}, vocabulary, 1), table = normal(dtype, {vocabulary, width}, 2);
    Tensor grad_out = normal(dtype, {ids_count, width}, 3);
    Tensor out(dtype, {ids_count, width}), grad_table(dtype, {vocabulary, width});
    pygpt::embedding::forward({.ids = ids, .table = table, .out = out});
    pygpt::embedding::backward({.grad_out = grad_out, .ids = ids, .grad_table = grad_table});
    return joined({&out, &grad_table});
}

Bytes feed_forward(DType dtype) {
    constexpr std::int64_t rows = 70, C = 40, hidden = 130, N = 50;
    Tensor x = normal(dtype, {rows, C}, 1), w_in = normal(dtype, {hidden, C}, 2), b_in = normal(dtype, {hidden}, 3);
    Tensor w_out = normal(dtype, {N, hidden}, 4), b_out = normal(dtype, {N}, 5), grad_out = normal(dtype, {rows, N}, 6);
    Tensor out(dtype, {rows, N}), pre_activation(dtype, {rows, hidden}), grad_x(dtype, {rows, C});
    Tensor grad_w_in(dtype, {hidden, C}), grad_b_in(dtype, {hidden});
    Tensor grad_w_out(dtype, {N, hidden}), grad_b_out(dtype, {N});
    const auto gelu = pygpt::Activation::gelu;
    pygpt::feed_forward::Forward forward{};
    forward.x = x;
    forward.w_in = w_in;
    forward.b_in = b_in;
    forward.w_out = w_out;
    forward.b_out = b_out;
    forward.activation = gelu;
    forward.out = out;
    forward.pre_activation = pre_activation;
    pygpt::feed_forward::forward(forward);
    pygpt::feed_forward::Backward backward{};
    backward.grad_out = grad_out;
    backward.x = x;
    backward.w_in = w_in;
    backward.w_out = w_out;
    backward.pre_activation = pre_activation;
    backward.activation = gelu;
    backward.grad_x = grad_x;
    backward.grad_w_in = grad_w_in;
    backward.grad_b_in = grad_b_in;
    backward.grad_w_out = grad_w_out;
    backward.grad_b_out = grad_b_out;
    pygpt::feed_forward::backward(backward);
    return joined({&out, &pre_activation, &grad_x, &grad_w_in, &grad_b_in, &grad_w_out, &grad_b_out});
}

Bytes gated_product(DType dtype) {
    constexpr std::int64_t rows = 60, width = 900;
    Tensor gate = normal(dtype, {rows, width}, 1), up = normal(dtype, {rows, width}, 2);
    Tensor grad_out = normal(dtype, {rows, width}, 3), out(dtype, {rows, width});
    Tensor grad_gate(dtype, {rows, width}), grad_up(dtype, {rows, width});
    const auto silu = pygpt::gated_product::Gate::silu;
    pygpt::gated_product::forward({.gate = gate, .up = up, .activation = silu, .out = out});
    pygpt::gated_product::backward(
        {.grad_out = grad_out, .gate = gate, .up = up, .activation = silu, .grad_gate = grad_gate, .grad_up = grad_up});
    return joined({&out, &grad_gate, &grad_up});
}

Bytes grad_norm(DType dtype) {
    Tensor large = normal(dtype, {300, 500}, 1), small = normal(dtype, {9}, 2), out(DType::float32, {});
    pygpt::grad_norm::forward({.tensors = {large, small}, .out = out});
    return joined({&out});
}

Bytes layer_norm(DType dtype) {
    constexpr std::int64_t rows = 500, width = 96;
    Tensor x = normal(dtype, {rows, width}, 1), residual = normal(dtype, {rows, width}, 2);
    Tensor weight = normal(dtype, {width}, 3), bias = normal(dtype, {width}, 4);
    Tensor grad_out = normal(dtype, {rows, width}, 5), grad_sum = normal(dtype, {rows, width}, 6);
    Tensor out(dtype, {rows, width}), sum(dtype, {rows, width}), grad_x(dtype, {rows, width});
    Tensor mean(DType::float32, {rows}), rstd(DType::float32, {rows});
    Tensor grad_weight(dtype, {width}), grad_bias(dtype, {width});
    pygpt::layer_norm::forward({.x = x,
                                .residual = residual,
                                .weight = weight,
                                .bias = bias,
                                .eps = 1e-5,
                                .out = out,
                                .sum = sum,
                                .mean = mean,
                                .rstd = rstd});
    pygpt::layer_norm::backward({.grad_out = grad_out,
                                 .grad_sum = grad_sum,
                                 .x = sum,
                                 .weight = weight,
                                 .mean = mean,
                                 .rstd = rstd,
                                 .grad_x = grad_x,
                                 .grad_narrow = {},
                                 .grad_weight = grad_weight,
                                 .grad_bias = grad_bias});
    return joined({&out, &sum, &mean, &rstd, &grad_x, &grad_weight, &grad_bias});
}

// Many rows, which are packed and tiled, and one, which is not.
Bytes linear(DType dtype) {
    constexpr std::int64_t K = 70, N = 200;
    Tensor weight = normal(dtype, {N, K}, 2), bias = normal(dtype, {N}, 3);
    Bytes all;
    for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{150}}) {
        Tensor x = normal(dtype, {rows, K}, 1), grad_out = normal(dtype, {rows, N}, 4), out(dtype, {rows, N});
        Tensor grad_x(dtype, {rows, K}), grad_weight(dtype, {N, K}), grad_bias(dtype, {N});
        pygpt::linear::Forward forward{};
        forward.x = x;
        forward.weight = weight;
        forward.bias = bias;
        forward.activation = pygpt::Activation::none;
        forward.out = out;
        pygpt::linear::forward(forward);
        pygpt::linear::Backward backward{};
        backward.grad_out = grad_out;
        backward.x = x;
        backward.weight = weight;
        backward.activation = pygpt::Activation::none;
        backward.grad_x = grad_x;
        backward.grad_weight = grad_weight;
        backward.grad_bias = grad_bias;
        pygpt::linear::backward(backward);
        const Bytes each = joined({&out, &grad_x, &grad_weight, &grad_bias});
        all.insert(all.end(), each.begin(), each.end());
    }
    return all;
}

Bytes linear_cross_entropy(DType dtype) {
    constexpr std::int64_t rows = 80, C = 40, V = 700;
    Tensor hidden = normal(dtype, {rows, C}, 1), weight = normal(dtype, {V, C}, 2), bias = normal(dtype, {V}, 3);
    Tensor targets = integers({rows}, V, 4), loss(DType::float32, {});
    Tensor grad_hidden(dtype, {rows, C}), grad_weight(dtype, {V, C}), grad_bias(dtype, {V});
    pygpt::linear_cross_entropy::Forward forward{};
    forward.hidden = hidden;
    forward.weight = weight;
    forward.bias = bias;
    forward.targets = targets;
    forward.ignore_index = 7;
    forward.reduction = pygpt::cross_entropy::Reduction::mean;
    forward.loss = loss;
    forward.grad_hidden = grad_hidden;
    forward.grad_weight = grad_weight;
    forward.grad_bias = grad_bias;
    pygpt::linear_cross_entropy::forward(forward);
    return joined({&loss, &grad_hidden, &grad_weight, &grad_bias});
}

// One row and several, with weights in 8 and in 4 bits.
Bytes quantized_linear(DType dtype) {
    constexpr std::int64_t K = 96, N = 300;
    Bytes all;
    for (const auto scheme : {pygpt::quantized_linear::Scheme::int8, pygpt::quantized_linear::Scheme::int4}) {
        const std::int64_t bytes = pygpt::quantized_linear::packed_bytes(N, K, scheme);
        Tensor packed(DType::uint8, {bytes});
        // Small positive numbers, read as whole numbers or as scales of either width.
        for (std::int64_t i = 0; i < bytes; ++i) packed.set(static_cast<std::size_t>(i), std::uint8_t(0x20 + i % 7));
        for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{40}}) {
            Tensor x = normal(dtype, {rows, K}, 1), out(dtype, {rows, N});
            pygpt::quantized_linear::Forward forward{};
            forward.x = x;
            forward.weight = packed;
            forward.scheme = scheme;
            forward.activation = pygpt::Activation::none;
            forward.out = out;
            pygpt::quantized_linear::forward(forward);
            const Bytes each = joined({&out});
            all.insert(all.end(), each.begin(), each.end());
        }
    }
    return all;
}

Bytes rms_norm(DType dtype) {
    constexpr std::int64_t rows = 500, width = 96;
    Tensor x = normal(dtype, {rows, width}, 1), weight = normal(dtype, {width}, 2);
    Tensor grad_out = normal(dtype, {rows, width}, 3), out(dtype, {rows, width}), rstd(DType::float32, {rows});
    Tensor grad_x(dtype, {rows, width}), grad_weight(dtype, {width});
    pygpt::rms_norm::Forward forward{};
    forward.x = x;
    forward.weight = weight;
    forward.eps = 1e-5;
    forward.out = out;
    forward.rstd = rstd;
    pygpt::rms_norm::forward(forward);
    pygpt::rms_norm::Backward backward{};
    backward.grad_out = grad_out;
    backward.x = x;
    backward.weight = weight;
    backward.rstd = rstd;
    backward.grad_x = grad_x;
    backward.grad_weight = grad_weight;
    pygpt::rms_norm::backward(backward);
    return joined({&out, &rstd, &grad_x, &grad_weight});
}

Bytes rotary(DType dtype) {
    Tensor x = normal(dtype, {3, 50, 6, 32}, 1), positions = integers({3, 50}, 64, 2);
    Tensor table = normal(DType::float32, {64, 32}, 3), out(dtype, {3, 50, 6, 32});
    pygpt::rotary::forward({.x = x, .positions = positions, .table = table, .back = false, .out = out});
    return joined({&out});
}

Bytes sample(DType) {
    constexpr std::int64_t rows = 9, vocabulary = 5000;
    Tensor logits = normal(DType::float32, {rows, vocabulary}, 1), seeds = integers({rows}, 1000, 2);
    Tensor positions = integers({rows}, 1000, 3), tokens(DType::int64, {rows}), logprobs(DType::float32, {rows});
    pygpt::sample::Forward forward{};
    forward.logits = logits;
    forward.temperature = 0.8;
    forward.top_k = 50;
    forward.top_p = 0.9;
    forward.seeds = seeds;
    forward.positions = positions;
    forward.tokens = tokens;
    forward.logprobs = logprobs;
    pygpt::sample::forward(forward);
    Bytes out = joined({&logprobs});
    out.insert(out.end(), tokens.bytes().begin(), tokens.bytes().end());
    return out;
}

// All four kernels of attention. The bias of shape (H, 1, S) is shared by rows and queries.
Bytes attend(DType dtype, std::int64_t B, std::int64_t T, TensorView* cu_seqlens, bool everything) {
    constexpr std::int64_t H = 4, G = 2, D = 24;
    Tensor q = normal(dtype, {B, T, H, D}, 1), k = normal(dtype, {B, T, G, D}, 2), v = normal(dtype, {B, T, G, D}, 3);
    Tensor bias = normal(dtype, {H, 1, T}, 4), seed = integers({}, 1000, 5);
    pygpt::attention::Problem problem{};
    problem.q = q;
    problem.k = k;
    problem.v = v;
    problem.causal = pygpt::attention::Causal::bottom_right;
    problem.scale = 0.2;
    if (cu_seqlens) problem.cu_seqlens = *cu_seqlens;
    if (everything) {
        problem.bias = bias;
        problem.window = 90;
        problem.softcap = 3;
        problem.dropout = 0.25;
        problem.seed = seed;
    }
    Tensor out(dtype, {B, T, H, D}), lse(DType::float32, {B, H, T}), weights(dtype, {B, H, T, T});
    pygpt::attention::forward({problem, out, lse, false});
    pygpt::attention::weights({problem, lse, weights});
    Tensor grad_out = normal(dtype, {B, T, H, D}, 6);
    Tensor grad_q(dtype, {B, T, H, D}), grad_k(dtype, {B, T, G, D}), grad_v(dtype, {B, T, G, D});
    const pygpt::attention::Gradients saved{problem, grad_out, {}, out, lse};
    pygpt::attention::backward({saved, grad_q, grad_k, grad_v});
    if (!everything) return joined({&out, &lse, &weights, &grad_q, &grad_k, &grad_v});
    Tensor grad_bias(dtype, {H, 1, T});
    pygpt::attention::bias_backward({saved, grad_bias});
    return joined({&out, &lse, &weights, &grad_q, &grad_k, &grad_v, &grad_bias});
}

Bytes attention(DType dtype) {
    Tensor bounds = integers({0, 3, 3, 70, 150});
    TensorView cu_seqlens = bounds;
    Bytes out = attend(dtype, 2, 110, nullptr, true);
    const Bytes packed = attend(dtype, 1, 150, &cu_seqlens, false);
    out.insert(out.end(), packed.begin(), packed.end());
    return out;
}

struct Case {
    const char* op;
    std::function<Bytes(DType)> run;
};
const Case cases[] = {
    {"adamw", adamw},
    {"add", add},
    {"attention", attention},
    {"cross_entropy", cross_entropy},
    {"dropout", dropout},
    {"embedding", embedding},
    {"feed_forward", feed_forward},
    {"gated_product", gated_product},
    {"grad_norm", grad_norm},
    {"layer_norm", layer_norm},
    {"linear", linear},
    {"linear_cross_entropy", linear_cross_entropy},
    {"quantized_linear", quantized_linear},
    {"rms_norm", rms_norm},
    {"rotary", rotary},
    {"sample", sample},
};

void check(const std::string& what, const std::function<Bytes()>& run) {
    pygpt::cpu::set_threads(1);
    const Bytes expected = run();
    const auto expect_same = [&](const std::string& where) {
        if (run() == expected) return;
        std::fprintf(stderr, "driver: %s gives other bytes %s\n", what.c_str(), where.c_str());
        std::exit(1);
    };
    for (int count : {2, 3, 7, 16}) {
        pygpt::cpu::set_threads(count);
        for (int round = 0; round < 3; ++round) expect_same("on " + std::to_string(count) + " threads");
    }
    const auto repeat = [&] {
        pygpt::cpu::set_threads(3);
        for (int round = 0; round < 5; ++round) expect_same("beside another caller");
    };
    std::thread other(repeat);
    repeat();
    other.join();
    if (const pid_t child = fork(); child == 0) {
        pygpt::cpu::set_threads(2);
        expect_same("in a forked child");
        _exit(0);
    } else {
        int status = 0;
        waitpid(child, &status, 0);
        if (status != 0) std::exit(1);
    }
}

}  // namespace

int main() {
    for (const auto& [name, run] : cases) {
        pygpt::Op& op = pygpt::Op::find(name);
        for (const pygpt::Op::Entry& entry : op.entries()) {
            for (DType dtype : {DType::float32, DType::bfloat16}) {
                if (!entry.refuses({dtype, {pygpt::DeviceType::cpu, 0}}).empty()) continue;
                op.force(entry.name);
                const std::string what = std::string(name) + " " + entry.name + " " + pygpt::name(dtype);
                std::fprintf(stderr, "%s\n", what.c_str());
                check(what, [&run, dtype] { return run(dtype); });
            }
        }
    }
    std::puts("ok");
    return 0;
}
