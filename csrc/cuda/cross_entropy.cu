// Cross-entropy, forward and backward. logits (R, V), targets (R,) -> a loss for each row, or their sum or mean
//
// Forward, per row:   m = max(x);  s = Σ exp(x - m);  loss = (m - x[target]) + log s
// Backward, per row:  grad_x = (exp(x - m) / s - [column = target]) · g, g = the gradient of the row's loss
//
// m and s are kept apart: m + log s would round away the digits of s where logits are large. A block owns a row
// (tiles/softmax_row.cuh). The forward reads each logit once and keeps two numbers a row for the backward, which reads
// and writes each element once: those are the floors. One block then sums over rows, in double, in an order that their
// number decides.
//
// A target out of range gives the row NaN, as its loss, maximum and sum, and so as its gradient.
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/pointer.h"
#include "cuda/tiles/softmax_row.cuh"

namespace pygpt::cuda {
namespace {

using cross_entropy::Reduction;

template <class Storage, bool aligned>
__global__ void __launch_bounds__(softmax_threads)
    cross_entropy_forward_kernel(const Storage* logits, const std::int64_t* targets, std::int64_t ignore_index,
                                 float* losses, float* maximum, float* sum, std::int64_t vocabulary) {
    __shared__ LogSumExp shared[softmax_warps];
    const std::int64_t row = blockIdx.x;
    const std::int64_t target = targets[row];
    LogSumExp result = {0, 1};
    float loss = 0;
    if (target != ignore_index) {
        const Storage* x = logits + row * vocabulary;
        result = log_sum_exp<aligned>(x, vocabulary, shared);
        if (target >= 0 && target < vocabulary) {
            loss = result.loss(to_float(x[target]));
        } else {
            loss = result.maximum = result.sum = nanf("");
        }
    }
    if (threadIdx.x > 0) return;
    losses[row] = loss;
    if (maximum) maximum[row] = result.maximum;
    if (sum) sum[row] = result.sum;
}

constexpr int sum_threads = 256;

// How many targets are not ignored; every thread of the one block gets the number.
__device__ std::int64_t rows_that_count(const std::int64_t* targets, std::int64_t ignore_index, std::int64_t rows) {
    __shared__ std::int64_t shared[sum_threads / warp_lanes];
    std::int64_t count = 0;
    for (std::int64_t row = threadIdx.x; row < rows; row += sum_threads) count += targets[row] != ignore_index;
    return reduce_team(count, shared, Sum{});
}

// One block: the sum of the losses, or their mean.
__global__ void cross_entropy_sum_kernel(const float* losses, const std::int64_t* targets, std::int64_t ignore_index,
                                         bool mean, float* loss, std::int64_t rows) {
    __shared__ double shared[sum_threads / warp_lanes];
    double total = 0;
    for (std::int64_t row = threadIdx.x; row < rows; row += sum_threads) total += static_cast<double>(losses[row]);
    total = reduce_team(total, shared, Sum{});
    const std::int64_t count = rows_that_count(targets, ignore_index, rows);
    if (mean && count > 0) total /= static_cast<double>(count);
    if (threadIdx.x == 0) *loss = static_cast<float>(total);
}

// One block: the gradient of each row's loss, where the loss is their mean.
__global__ void cross_entropy_mean_backward_kernel(const float* grad_loss, const std::int64_t* targets,
                                                   std::int64_t ignore_index, float* grad, std::int64_t rows) {
    const std::int64_t count = rows_that_count(targets, ignore_index, rows);
    if (threadIdx.x == 0) *grad = count > 0 ? *grad_loss / static_cast<float>(count) : 0.0f;
}

constexpr int backward_threads = 256;

// `grads` holds a value a row, or one for all.
template <class Storage, bool aligned>
__global__ void __launch_bounds__(backward_threads)
    cross_entropy_backward_kernel(const float* grads, bool one_grad, const Storage* logits, const std::int64_t* targets,
                                  const float* maximum, const float* sum, std::int64_t ignore_index,
                                  Storage* grad_logits, std::int64_t vocabulary) {
    constexpr int vector = pack_elements<Storage>;
    const std::int64_t row = blockIdx.x;
    const std::int64_t target = targets[row];
    const bool counts = target != ignore_index;
    const Storage* x = logits + row * vocabulary;
    Storage* grad_x = grad_logits + row * vocabulary;
    const float grad = grads[one_grad ? 0 : row];
    const float shift = maximum[row];
    const float per_sum = 1.0f / sum[row];
    const float scale = grad * per_sum;
#pragma unroll 2
    for (std::int64_t i = threadIdx.x * vector; i < vocabulary; i += backward_threads * vector) {
        Floats<vector> result = {};
        if (counts) {
            const auto values = load<aligned, vector>(x + i, vocabulary - i);
#pragma unroll
            for (int j = 0; j < vector; ++j) {
                const float weight = expf(values.value[j] - shift);
                result.value[j] = i + j == target ? (__fmul_rn(weight, per_sum) - 1.0f) * grad : weight * scale;
            }
        }
        store<aligned>(grad_x + i, result, vocabulary - i);
    }
}

// Calls f(storage, aligned) with values of the types that rows of logits at these addresses need.
template <class F>
void with_rows(const TensorView& logits, std::int64_t vocabulary, std::initializer_list<const void*> addresses, F f) {
    with_storage(logits.dtype, [&](auto storage) {
        if (in_packs(pack_elements<decltype(storage)>, vocabulary, addresses)) return f(storage, std::true_type{});
        return f(storage, std::false_type{});
    });
}

}  // namespace

void cross_entropy_forward(const cross_entropy::Forward& a) {
    const bool reduces = a.reduction != Reduction::none;
    float* losses = reduces ? scratch<float>(static_cast<std::size_t>(a.rows)) : pointer<float>(a.loss);
    const auto* targets = pointer<std::int64_t>(a.targets);
    with_rows(a.logits, a.vocabulary, {a.logits.data}, [&](auto storage, auto aligned) {
        using Storage = decltype(storage);
        launch(cross_entropy_forward_kernel<Storage, decltype(aligned)::value>,
               {.grid = static_cast<unsigned>(a.rows), .block = softmax_threads}, pointer<Storage>(a.logits), targets,
               a.ignore_index, losses, pointer<float>(a.maximum), pointer<float>(a.sum), a.vocabulary);
    });
    if (!reduces) return;
    launch(cross_entropy_sum_kernel, {.grid = 1, .block = sum_threads}, losses, targets, a.ignore_index,
           a.reduction == Reduction::mean, pointer<float>(a.loss), a.rows);
}

void cross_entropy_backward(const cross_entropy::Backward& a) {
    const float* grads = pointer<float>(a.grad_loss);
    const auto* targets = pointer<std::int64_t>(a.targets);
    if (a.reduction == Reduction::mean) {
        float* grad = scratch<float>(1);
        launch(cross_entropy_mean_backward_kernel, {.grid = 1, .block = sum_threads}, grads, targets, a.ignore_index,
               grad, a.rows);
        grads = grad;
    }
    with_rows(a.logits, a.vocabulary, {a.logits.data, a.grad_logits.data}, [&](auto storage, auto aligned) {
        using Storage = decltype(storage);
        launch(cross_entropy_backward_kernel<Storage, decltype(aligned)::value>,
               {.grid = static_cast<unsigned>(a.rows), .block = backward_threads}, grads,
               a.reduction != Reduction::none, pointer<Storage>(a.logits), targets, pointer<float>(a.maximum),
               pointer<float>(a.sum), a.ignore_index, pointer<Storage>(a.grad_logits), a.vocabulary);
    });
}

}  // namespace pygpt::cuda
