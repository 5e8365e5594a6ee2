// One step of AdamW on any number of parameters.
//
// A block takes a run of elements of one parameter (tiles/runs.cuh); elements do not meet, and a launch takes as many
// parameters as its arguments hold. The floor is memory: reading param, grad and both moments and writing all but grad,
// 28 bytes a float32 parameter, once.
#include <array>
#include <cmath>

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/pointer.h"
#include "cuda/tiles/pack.cuh"
#include "cuda/tiles/runs.cuh"

namespace pygpt::cuda {
namespace {

constexpr int threads = 256;
constexpr int vector = 4;  // 16 bytes of what is float32

struct Item {
    void* param;
    const void* grad;
    float *exp_avg, *exp_avg_sq, *master;
    std::int64_t elements, first_run;
    float lr, root;     // divided by, and one over the root of, their moments' biases
    const float* step;  // instead
    bool aligned;
};
static_assert(Runs<Item>::capacity >= 48);

// The formula's factors that all parameters have in common, worked out in double; and, for steps that are counted on
// the device, what their own factors are made of.
struct Factors {
    float keep1, keep2, take1, take2, decay, eps;
    const float* rate;
    float weight_decay, log_beta1, log_beta2;
};

// Those that depend on the step and the learning rate.
struct StepFactors {
    float lr, root, decay;

    __device__ StepFactors(const Item& p, const Factors& f) : lr(p.lr), root(p.root), decay(f.decay) {
        if (!p.step) return;
        const float rate = *f.rate, step = *p.step;
        lr = rate / -expm1f(step * f.log_beta1);
        root = 1 / sqrtf(-expm1f(step * f.log_beta2));
        decay = fmaf(-rate, f.weight_decay, 1.0f);
    }
};

template <class Storage, bool aligned>
__device__ void update(const Item& p, std::int64_t first, float grad_scale, const Factors& f) {
    const StepFactors at(p, f);
    auto* param = static_cast<Storage*>(p.param);
    const auto* grad = static_cast<const Storage*>(p.grad);
    const std::int64_t end = first + elements_per_run < p.elements ? first + elements_per_run : p.elements;
    for (std::int64_t i = first + threadIdx.x * vector; i < end; i += threads * vector) {
        const std::int64_t left = end - i;
        const auto g = load<aligned, vector>(grad + i, left);
        auto mean = load<aligned, vector>(p.exp_avg + i, left);
        auto variance = load<aligned, vector>(p.exp_avg_sq + i, left);
        auto value = p.master ? load<aligned, vector>(p.master + i, left) : load<aligned, vector>(param + i, left);
#pragma unroll
        for (int j = 0; j < vector; ++j) {
            const float scaled = g.value[j] * grad_scale;
            mean.value[j] = fmaf(f.take1, scaled, __fmul_rn(f.keep1, mean.value[j]));
            variance.value[j] = fmaf(f.take2 * scaled, scaled, __fmul_rn(f.keep2, variance.value[j]));
            const float change = at.lr * mean.value[j] / fmaf(sqrtf(variance.value[j]), at.root, f.eps);
            value.value[j] = __fmul_rn(value.value[j], at.decay) - change;
        }
        store<aligned>(p.exp_avg + i, mean, left);
        store<aligned>(p.exp_avg_sq + i, variance, left);
        if (p.master) store<aligned>(p.master + i, value, left);
        store<aligned>(param + i, value, left);
    }
}

template <class Storage>
__global__ void __launch_bounds__(threads)
    adamw_step_kernel(const __grid_constant__ Runs<Item> runs, const float* grad_scale, const Factors factors) {
    const Item& item = runs.of(blockIdx.x);
    const std::int64_t first = (blockIdx.x - item.first_run) * elements_per_run;
    const float scale = grad_scale ? *grad_scale : 1.0f;
    if (item.aligned) {
        update<Storage, true>(item, first, scale, factors);
    } else {
        update<Storage, false>(item, first, scale, factors);
    }
}

Item item_of(const adamw::Step& a, const adamw::Parameter& p) {
    const std::int64_t size = elements(p.param);
    return {
        .param = p.param.data,
        .grad = p.grad.data,
        .exp_avg = pointer<float>(p.exp_avg),
        .exp_avg_sq = pointer<float>(p.exp_avg_sq),
        .master = pointer<float>(p.master),
        .elements = size,
        .first_run = 0,
        .lr = static_cast<float>(a.lr / (1 - std::pow(a.beta1, p.step))),
        .root = static_cast<float>(1 / std::sqrt(1 - std::pow(a.beta2, p.step))),
        .step = pointer<float>(p.counted),
        .aligned = in_packs(vector, size,
                            {p.param.data, p.grad.data, p.exp_avg.data, p.exp_avg_sq.data, pointer<void>(p.master)}),
    };
}

}  // namespace

void adamw_step(const adamw::Step& a) {
    const Factors factors{
        .keep1 = static_cast<float>(a.beta1),
        .keep2 = static_cast<float>(a.beta2),
        .take1 = static_cast<float>(1 - a.beta1),
        .take2 = static_cast<float>(1 - a.beta2),
        .decay = static_cast<float>(1 - a.lr * a.weight_decay),
        .eps = static_cast<float>(a.eps),
        .rate = pointer<float>(a.rate),
        .weight_decay = static_cast<float>(a.weight_decay),
        .log_beta1 = static_cast<float>(std::log(a.beta1)),
        .log_beta2 = static_cast<float>(std::log(a.beta2)),
    };
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
        with_storage(dtype, [&](auto storage) {
            Runs<Item> runs{};
            const auto start = [&] {
                launch(adamw_step_kernel<decltype(storage)>,
                       {.grid = static_cast<unsigned>(runs.runs), .block = threads}, runs, pointer<float>(a.grad_scale),
                       factors);
                runs.clear();
            };
            for (const adamw::Parameter& p : a.parameters) {
                if (p.param.dtype != dtype) continue;
                if (runs.full()) start();
                runs.add(item_of(a, p));
            }
            start();
        });
    }
}

}  // namespace pygpt::cuda
