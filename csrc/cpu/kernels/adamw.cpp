// One step of AdamW on any number of parameters.
//
// Tasks are runs of elements of one parameter; elements do not meet. The floor is memory: reading param, grad and both
// moments and writing all but grad, 28 bytes a float32 parameter, once.
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/kernels/rows.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t elements_per_task = 32768;

struct Run {
    std::size_t parameter;
    std::int64_t first, count;
};

// The formula's factors, worked out in double.
template <class Number>
struct Factors {
    Number grad_scale, keep1, keep2, take1, take2, decay, lr, root, eps;

    Factors(const adamw::Step& a, double step)
        : grad_scale(a.grad_scale ? *static_cast<const float*>(a.grad_scale->data) : 1.0f),
          keep1(static_cast<Number>(a.beta1)),
          keep2(static_cast<Number>(a.beta2)),
          take1(static_cast<Number>(1 - a.beta1)),
          take2(static_cast<Number>(1 - a.beta2)),
          decay(static_cast<Number>(1 - a.lr * a.weight_decay)),
          lr(static_cast<Number>(a.lr / (1 - std::pow(a.beta1, step)))),
          root(static_cast<Number>(1 / std::sqrt(1 - std::pow(a.beta2, step)))),
          eps(static_cast<Number>(a.eps)) {}
};

template <class Storage>
void update(const adamw::Step& a, const Run& run) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    const adamw::Parameter& p = a.parameters[run.parameter];
    const Factors<Number> factors(a, p.step);
    const V grad_scale = V::broadcast(factors.grad_scale), keep1 = V::broadcast(factors.keep1),
            keep2 = V::broadcast(factors.keep2), take1 = V::broadcast(factors.take1),
            take2 = V::broadcast(factors.take2), decay = V::broadcast(factors.decay), lr = V::broadcast(factors.lr),
            root = V::broadcast(factors.root), eps = V::broadcast(factors.eps);
    auto* param = static_cast<Storage*>(p.param.data) + run.first;
    const auto* grad = static_cast<const Storage*>(p.grad.data) + run.first;
    auto* exp_avg = static_cast<Number*>(p.exp_avg.data) + run.first;
    auto* exp_avg_sq = static_cast<Number*>(p.exp_avg_sq.data) + run.first;
    auto* master = p.master ? static_cast<Number*>(p.master->data) + run.first : nullptr;
    struct Updated {
        V mean, variance, value;
    };
    map_row<V>(
        run.count,
        [&](std::int64_t i, std::int64_t lanes) {
            const V g = V::load(grad + i, lanes) * grad_scale;
            const V mean = fma(take1, g, keep1 * V::load(exp_avg + i, lanes));
            const V variance = fma(take2 * g, g, keep2 * V::load(exp_avg_sq + i, lanes));
            const V change = lr * mean / fma(sqrt(variance), root, eps);
            const V before = master ? V::load(master + i, lanes) : V::load(param + i, lanes);
            return Updated{mean, variance, before * decay - change};
        },
        [&](std::int64_t i, std::int64_t lanes, const Updated& updated) {
            updated.mean.store(exp_avg + i, lanes);
            updated.variance.store(exp_avg_sq + i, lanes);
            if (master) updated.value.store(master + i, lanes);
            updated.value.store(param + i, lanes);
        });
}

}  // namespace

template <>
void adamw_step<this_isa>(const adamw::Step& a) {
    std::int64_t count = 0;
    for (const adamw::Parameter& p : a.parameters)
        count += (elements(p.param) + elements_per_task - 1) / elements_per_task;
    const Scratch scratch(static_cast<std::size_t>(count) * sizeof(Run));
    auto* runs = static_cast<Run*>(scratch.data());
    Run* next = runs;
    for (std::size_t parameter = 0; parameter < a.parameters.size(); ++parameter) {
        const std::int64_t size = elements(a.parameters[parameter].param);
        for (std::int64_t first = 0; first < size; first += elements_per_task) {
            *next++ = {parameter, first, std::min(elements_per_task, size - first)};
        }
    }
    parallel_for(count, [&](std::int64_t task) {
        with_storage(a.parameters[runs[task].parameter].param.dtype,
                     [&](auto storage) { update<decltype(storage)>(a, runs[task]); });
    });
}

}  // namespace pygpt::cpu
