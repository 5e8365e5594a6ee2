// The CPU kernels without Python, for the thread sanitizer: every kernel that shares work between threads runs on
// several thread counts, from two calling threads at once and in a forked child, and must give the same bytes each time.
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
#include "ops/layer_norm.h"

namespace {

using pygpt::DType;
using pygpt::TensorView;

std::vector<float> random_values(std::size_t count, unsigned seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(engine);
    return values;
}

TensorView view(std::vector<float>& values, std::initializer_list<std::int64_t> shape) {
    TensorView out{};
    out.data = values.data();
    out.dtype = DType::float32;
    out.device = {pygpt::DeviceType::cpu, 0};
    out.dimensions = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), out.shape);
    std::int64_t stride = 1;
    for (int i = out.dimensions - 1; i >= 0; --i) {
        out.strides[i] = stride;
        stride *= out.shape[i];
    }
    return out;
}

// Forward and backward of one op on fixed random input: all results, one after the other.
using Case = std::function<std::vector<float>()>;

std::vector<float> layer_norm() {
    constexpr std::int64_t rows = 500, width = 96;
    auto x = random_values(rows * width, 1), grad = random_values(rows * width, 2), weight = random_values(width, 3);
    std::vector<float> out(rows * width), mean(rows), rstd(rows), grad_x(rows * width), grad_weight(width);
    pygpt::layer_norm::forward({.x = view(x, {rows, width}),
                                .residual = {},
                                .weight = view(weight, {width}),
                                .bias = {},
                                .eps = 1e-5,
                                .out = view(out, {rows, width}),
                                .sum = {},
                                .mean = view(mean, {rows}),
                                .rstd = view(rstd, {rows})});
    pygpt::layer_norm::backward({.grad_out = view(grad, {rows, width}),
                                 .grad_sum = {},
                                 .x = view(x, {rows, width}),
                                 .weight = view(weight, {width}),
                                 .mean = view(mean, {rows}),
                                 .rstd = view(rstd, {rows}),
                                 .grad_x = view(grad_x, {rows, width}),
                                 .grad_weight = view(grad_weight, {width}),
                                 .grad_bias = {}});
    out.insert(out.end(), grad_x.begin(), grad_x.end());
    out.insert(out.end(), grad_weight.begin(), grad_weight.end());
    return out;
}

const std::pair<std::string, Case> cases[] = {{"layer_norm", layer_norm}};

void expect_same(const std::vector<float>& a, const std::vector<float>& b, const std::string& what) {
    if (a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0) return;
    std::fprintf(stderr, "driver: %s gives other bytes\n", what.c_str());
    std::exit(1);
}

}  // namespace

int main() {
    for (const auto& [name, run] : cases) {
        pygpt::cpu::set_threads(1);
        const std::vector<float> expected = run();
        for (int count : {2, 3, 7, 16}) {
            pygpt::cpu::set_threads(count);
            for (int round = 0; round < 5; ++round) expect_same(expected, run(), name);
        }
        const auto repeat = [&] {
            pygpt::cpu::set_threads(3);
            for (int round = 0; round < 10; ++round) expect_same(expected, run(), name + " beside another caller");
        };
        std::thread other(repeat);
        repeat();
        other.join();
        if (const pid_t child = fork(); child == 0) {
            pygpt::cpu::set_threads(2);
            expect_same(expected, run(), name + " in a forked child");
            _exit(0);
        } else {
            int status = 0;
            waitpid(child, &status, 0);
            if (status != 0) return 1;
        }
    }
    std::puts("ok");
    return 0;
}
