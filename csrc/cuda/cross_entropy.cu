// Cross-entropy, forward and backward. logits (R, V), targets (R,) -> a loss for each row, or their sum or mean
//
// Forward, per row:   m = max(x);  s = Σ exp(x - m);  loss = (m - x[target]) + log s
// Backward, per row:  grad_x = (exp(x - m) / s - [column = target]) · g, g = the gradient of the row's loss
//
// m and s are kept apart: m + log s would round away the digits of s where logits are large. A block owns a row
// (tiles/softmax_row.cuh), wherever it begins: rows of an odd vocabulary are not aligned. The forward reads each logit
// once and keeps two numbers a row for the backward, which reads and writes each element once: those are the floors.
// One block then sums over rows, in double, in an order that their number decides.
//
// A target out of range gives the row NaN, as its loss, maximum and sum, and so as its gradient.
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/pointer.h"
#include "cuda/tiles/softmax_row.cuh"

namespace pygpt::cuda {
namespace {

using cross_entropy::Reduction;

constexpr int forward_threads = 256;
constexpr int forward_blocks = 4;  // of a multiprocessor, at least

template <class Storage>
__global__ void __launch_bounds__(forward_threads, forward_blocks)
    cross_entropy_forward_kernel(const Storage* logits, const std::int64_t* targets, std::int64_t ignore_index,
                                 float* losses, float* maximum, float* sum, std::int64_t rows,
                                 std::int64_t vocabulary) {
    __shared__ LogSumExp shared[softmax_parts];
    const std::int64_t row = blockIdx.x;
    const std::int64_t target = targets[row];
    LogSumExp result = {0, 1};
    float loss = 0;
    if (target != ignore_index) {
        const Storage* x = logits + row * vocabulary;
        result = log_sum_exp(AnyRow<Storage>{x, row * vocabulary, (rows - row) * vocabulary}, vocabulary, shared);
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
constexpr int backward_packs = 4;  // that a thread has on their way at one time

// `grads` holds a value a row, or one for all. A row is cut where the addresses of its gradient are multiples of 16
// bytes; `alike`: those of its logits are multiples at the same places.
template <class Storage, bool alike>
__global__ void __launch_bounds__(backward_threads)
    cross_entropy_backward_kernel(const float* grads, bool one_grad, const Storage* logits, const std::int64_t* targets,
                                  const float* maximum, const float* sum, std::int64_t ignore_index,
                                  Storage* grad_logits, std::int64_t vocabulary) {
    constexpr int vector = pack_elements<Storage>;
    constexpr std::int64_t step = backward_threads * vector;
    const std::int64_t row = blockIdx.x;
    const std::int64_t target = targets[row];
    const bool counts = target != ignore_index;
    const Storage* x = logits + row * vocabulary;
    Storage* grad_x = grad_logits + row * vocabulary;
    const float grad = grads[one_grad ? 0 : row];
    const float shift = maximum[row];
    const float per_sum = 1.0f / sum[row];
    const float scale = grad * per_sum;
    const auto off_target = [&](float logit) { return __fmul_rn(softmax_exp(logit - shift), scale); };
    const auto at_target = [&](float logit) { return (__fmul_rn(softmax_exp(logit - shift), per_sum) - 1.0f) * grad; };

    const int past = static_cast<int>(reinterpret_cast<std::uintptr_t>(grad_x) % pack_bytes / sizeof(Storage));
    const std::int64_t begin = past == 0 ? 0 : vector - past < vocabulary ? vector - past : vocabulary;
    const std::int64_t end = begin + (vocabulary - begin) / vector * vector;
    for (std::int64_t i = threadIdx.x; i < begin + (vocabulary - end); i += backward_threads) {
        const std::int64_t column = i < begin ? i : end + (i - begin);
        float result = 0;
        if (counts) result = column == target ? at_target(to_float(x[column])) : off_target(to_float(x[column]));
        grad_x[column] = from_float<Storage>(result);
    }
    for (std::int64_t first = begin + threadIdx.x * vector; first < end; first += backward_packs * step) {
        Floats<vector> held[backward_packs] = {};
#pragma unroll
        for (int k = 0; k < backward_packs; ++k) {
            const std::int64_t i = first + k * step;
            if (i < end) held[k] = load<alike, vector>(x + i, vector);
        }
#pragma unroll
        for (int k = 0; k < backward_packs; ++k) {
            const std::int64_t i = first + k * step;
            if (i >= end) break;
            Floats<vector> result = {};
            if (counts) {
#pragma unroll
                for (int j = 0; j < vector; ++j) result.value[j] = off_target(held[k].value[j]);
                if (target >= i && target < i + vector) {
#pragma unroll
                    for (int j = 0; j < vector; ++j) {
                        if (i + j == target) result.value[j] = at_target(held[k].value[j]);
                    }
                }
            }
            store<true>(grad_x + i, result, vector);
        }
    }
}

}  // namespace

void cross_entropy_forward(const cross_entropy::Forward& a) {
    const bool reduces = a.reduction != Reduction::none;
    float* losses = reduces ? scratch<float>(static_cast<std::size_t>(a.rows)) : pointer<float>(a.loss);
    const auto* targets = pointer<std::int64_t>(a.targets);
    with_storage(a.logits.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        launch(cross_entropy_forward_kernel<Storage>, {.grid = static_cast<unsigned>(a.rows), .block = forward_threads},
               pointer<Storage>(a.logits), targets, a.ignore_index, losses, pointer<float>(a.maximum),
               pointer<float>(a.sum), a.rows, a.vocabulary);
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
    const auto past = [](const TensorView& tensor) {
        return reinterpret_cast<std::uintptr_t>(tensor.data) % pack_bytes;
    };
    const bool alike = past(a.logits) == past(a.grad_logits);
    with_storage(a.logits.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        launch(alike ? cross_entropy_backward_kernel<Storage, true> : cross_entropy_backward_kernel<Storage, false>,
               {.grid = static_cast<unsigned>(a.rows), .block = backward_threads}, grads,
               a.reduction != Reduction::none, pointer<Storage>(a.logits), targets, pointer<float>(a.maximum),
               pointer<float>(a.sum), a.ignore_index, pointer<Storage>(a.grad_logits), a.vocabulary);
    });
}

}  // namespace pygpt::cuda
