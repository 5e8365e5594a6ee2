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
#include "ops/add.h"
#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/dropout.h"
#include "ops/embedding.h"
#include "ops/implementation.h"
#include "ops/layer_norm.h"

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
                                 .grad_weight = grad_weight,
                                 .grad_bias = grad_bias});
    return joined({&out, &sum, &mean, &rstd, &grad_x, &grad_weight, &grad_bias});
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
    pygpt::attention::forward({problem, out, lse});
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
const Case cases[] = {{"add", add},         {"attention", attention}, {"cross_entropy", cross_entropy},
                      {"dropout", dropout}, {"embedding", embedding}, {"layer_norm", layer_norm}};

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
