// linear_cross_entropy: the loss of hidden · weightᵀ + bias, and its gradients in the same call.
//
// Per row:    loss = log Σ exp(x) - x[target],   x = hidden · weightᵀ + bias            (V,)
//             d = (softmax(x) - [column = target]) · g, g = the gradient of the row's loss
// Gradients:  grad_hidden = d · weight (M, C);   grad_weight = dᵀ · hidden (V, C);   grad_bias = Σ_rows d
//
// Rows are taken in blocks whose logits, in float32, take up to `logits_bytes`; d is written in their place, rounded to
// hidden's dtype, and two more products read it (product.h). Logits of all rows never exist. Loss and gradients come
// from one pass, since a backward of its own would have to compute the logits again.
//
// Rows whose target is ignore_index take no part. Only the device knows how many they are: a first kernel lists the
// others in order, and everything after is launched for as many rows as there may be and stops where the list ends.
// Weight gradients are summed over the list's blocks in order; what a block is follows from M, V, and whether the
// device has little memory. A row's exponentials are summed as cross_entropy sums them. A target out of range makes its
// row's loss and d NaN.
#include <algorithm>

#include "cuda/features.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/matmul/product.h"
#include "cuda/number.cuh"
#include "cuda/pointer.h"
#include "cuda/tiles/softmax_row.cuh"

namespace pygpt::cuda {
namespace {

using linear_cross_entropy::Reduction;

constexpr std::int64_t logits_bytes = std::int64_t{1} << 30;
constexpr std::int64_t logits_bytes_of_small_devices = std::int64_t{256} << 20;
constexpr std::int64_t small_device_bytes = std::int64_t{32} << 30;  // of memory
constexpr std::int64_t row_step = 128;                               // rows of a block are a multiple of it, and
constexpr std::int64_t most_block_rows = 8192;

// Blocks are as few as may be, and all but the last of the same number of rows.
std::int64_t rows_of_block(std::int64_t rows, std::int64_t vocabulary) {
    const bool small = memory_bytes(execution().device) < small_device_bytes;
    const std::int64_t fitting = (small ? logits_bytes_of_small_devices : logits_bytes) /
                                 (vocabulary * static_cast<std::int64_t>(sizeof(float)));
    const std::int64_t most = std::clamp(fitting / row_step * row_step, row_step, most_block_rows);
    const std::int64_t blocks = std::max<std::int64_t>(1, divide_up(rows, most));
    return std::max(row_step, divide_up(divide_up(rows, blocks), row_step) * row_step);
}

// ---- The rows that are not ignored ----

constexpr int list_threads = 1024;

// What the device knows of the targets.
struct Counted {
    std::int64_t count;
    float shared;  // the gradient of each row's loss, where the rows have none of their own
};

// One block: the indices of rows that count, in order. A round lists `list_threads` rows.
__global__ void __launch_bounds__(list_threads)
    list_rows_kernel(const std::int64_t* targets, std::int64_t rows, std::int64_t ignore_index, bool mean,
                     std::int64_t* list, Counted* counted) {
    __shared__ int of_warp[list_threads / warp_lanes];
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
    std::int64_t count = 0;
    for (std::int64_t first = 0; first < rows; first += list_threads) {
        const std::int64_t row = first + threadIdx.x;
        const bool counts = row < rows && targets[row] != ignore_index;
        const unsigned in_warp = __ballot_sync(all_lanes, counts);
        __syncthreads();  // of_warp may still be read for the last round
        if (lane == 0) of_warp[warp] = __popc(in_warp);
        __syncthreads();
        std::int64_t place = count + __popc(in_warp & ((1u << lane) - 1));
        for (int w = 0; w < list_threads / warp_lanes; ++w) {
            if (w < warp) place += of_warp[w];
            count += of_warp[w];
        }
        if (counts) list[place] = row;
    }
    if (threadIdx.x == 0) *counted = {count, mean && count > 0 ? 1.0f / static_cast<float>(count) : 1.0f};
}

// ---- Losses, and logits that become their gradient ----

constexpr int losses_threads = 1024;
constexpr int vector = 4;
constexpr int round_columns = losses_threads * vector;

// Columns of a row of logits that fit a block's shared memory, in whole blocks of the softmax.
std::int64_t fitting_columns() {
    constexpr std::int64_t other_bytes = 2048;
    const std::int64_t bytes = shared_memory_bytes(execution().device) - other_bytes;
    constexpr std::int64_t block = softmax_block<float>;
    return bytes / (block * static_cast<std::int64_t>(sizeof(float))) * block;
}

// A block of threads owns the list's row `first` + blockIdx.x. Storage: what d is rounded to; its elements take the
// place of the logits from the row's start on. The first `kept_count` columns are read from memory once, and kept in
// shared memory; of the others, which are read again, a round's logits are all read before any is written over. So a
// multiprocessor has one block, whose row it holds itself: rows of more blocks would not stay in the L2 cache.
template <class Storage>
__global__ void __launch_bounds__(losses_threads)
    losses_kernel(float* logits, std::int64_t pitch, std::int64_t vocabulary, const std::int64_t* list,
                  const Counted* counted, std::int64_t first, const std::int64_t* targets, const float* grad_losses,
                  bool has_gradients, std::int64_t kept_count, float* losses) {
    extern __shared__ __align__(16) float kept[];
    __shared__ LogSumExp shared[softmax_parts];
    const std::int64_t left_rows = counted->count - first;
    if (static_cast<std::int64_t>(blockIdx.x) >= left_rows) {
        if (has_gradients && static_cast<std::int64_t>(blockIdx.x) < zeroed_rows(left_rows)) {
            auto* const d = reinterpret_cast<Storage*>(logits + blockIdx.x * pitch);
            for (std::int64_t column = threadIdx.x; column < vocabulary; column += losses_threads) d[column] = 0;
        }
        return;
    }
    const std::int64_t row = list[first + blockIdx.x];
    const std::int64_t target = targets[row];
    const bool exists = target >= 0 && target < vocabulary;
    float* const x = logits + blockIdx.x * pitch;
    const float of_target = exists ? x[target] : nanf("");
    LogSumExp result =
        log_sum_exp(AnyRow<float>{x, 0, vocabulary}, vocabulary, shared, [&](std::int64_t column, const auto& pack) {
            if (column >= kept_count) return;
            *reinterpret_cast<float4*>(kept + column) = {pack.value[0], pack.value[1], pack.value[2], pack.value[3]};
        });
    if (!exists) result = {nanf(""), nanf("")};
    if (threadIdx.x == 0) losses[row] = exists ? result.loss(of_target) : nanf("");
    if (!has_gradients) return;

    constexpr int whole = 16 / static_cast<int>(sizeof(Storage));  // d's rows end in zeros that make up 16 bytes
    const std::int64_t padded = (vocabulary + whole - 1) / whole * whole;
    const float g = grad_losses ? grad_losses[row] : counted->shared;
    const float per_sum = 1.0f / result.sum;
    const float scale = g * per_sum;
#pragma unroll 2
    for (std::int64_t start = 0; start < padded; start += round_columns) {
        const std::int64_t column = start + threadIdx.x * vector;
        const std::int64_t left = vocabulary - column;
        Floats<vector> d = {};
        if (column < kept_count) {
            d = load<true, vector>(kept + column, vector);
        } else if (left >= vector) {
            d = load<true, vector>(static_cast<const float*>(x) + column, vector);
        } else {
            d = load<false, vector>(static_cast<const float*>(x) + column, left);
        }
        // What was not kept of the round is read; of a vocabulary that is kept whole, this is not noticed if removed.
        if (start + round_columns > kept_count) __syncthreads();
        if (column >= padded) continue;
#pragma unroll
        for (int i = 0; i < vector; ++i) {
            const float weight = softmax_exp(d.value[i] - result.maximum);
            const float value = column + i == target ? (__fmul_rn(weight, per_sum) - 1.0f) * g : weight * scale;
            d.value[i] = i < left ? value : 0.0f;
        }
        store<true>(reinterpret_cast<Storage*>(x) + column, d, vector);
    }
}

constexpr int sum_threads = 256;

// One block: the sum of the losses, or their mean, in the order of cross_entropy.
__global__ void __launch_bounds__(sum_threads)
    sum_losses_kernel(const float* losses, std::int64_t rows, bool mean, const Counted* counted, float* loss) {
    __shared__ double shared[sum_threads / warp_lanes];
    double total = 0;
    for (std::int64_t row = threadIdx.x; row < rows; row += sum_threads) total += static_cast<double>(losses[row]);
    total = reduce_team(total, shared, Sum{});
    if (threadIdx.x > 0) return;
    *loss = static_cast<float>(mean && counted->count > 0 ? total / static_cast<double>(counted->count) : total);
}

}  // namespace

template <int architecture>
void linear_cross_entropy_forward(const linear_cross_entropy::Forward& a) {
    const DType dtype = a.hidden.dtype;
    const bool mean = a.reduction == Reduction::mean;
    const bool has_gradients = a.grad_hidden || a.grad_weight || a.grad_bias;
    const auto* const targets = pointer<const std::int64_t>(a.targets);
    const auto rows_scratch = static_cast<std::size_t>(a.M);

    auto* const list = scratch<std::int64_t>(rows_scratch);
    auto* const counted = scratch<Counted>(1);
    launch(list_rows_kernel, {.grid = 1, .block = list_threads}, targets, a.M, a.ignore_index, mean, list, counted);

    const bool own_losses = a.loss && a.reduction == Reduction::none;
    auto* const losses = own_losses ? pointer<float>(a.loss) : scratch<float>(rows_scratch);
    clear(losses, rows_scratch * sizeof(float));
    if (a.grad_hidden) clear(a.grad_hidden->data, static_cast<std::size_t>(a.M * a.C * bytes_of(dtype)));

    const std::int64_t block_rows = rows_of_block(a.M, a.V);
    const std::int64_t blocks = std::max<std::int64_t>(1, divide_up(a.M, block_rows));
    const std::int64_t most_rows = std::min(a.M, block_rows);
    const std::int64_t pitch = divide_up(a.V, 4) * 4;  // of logits, so that d's rows start at multiples of 16 bytes
    auto* const logits = scratch<float>(static_cast<std::size_t>(most_rows * pitch));
    auto* const gathered_rows = scratch<unsigned char>(operand_bytes(most_rows, a.C, dtype));
    const Matrix weight = operand(a.weight, a.V, a.C, dtype);
    const Matrix d{logits, pitch * static_cast<std::int64_t>(sizeof(float)) / bytes_of(dtype)};
    const std::int64_t fitting = fitting_columns();
    const std::int64_t columns = divide_up(a.V, softmax_block<float>) * softmax_block<float>;
    const std::int64_t kept = has_gradients ? std::min(columns, fitting) : 0;

    // Sums over the blocks are kept in float32.
    WeightGradient weights{.dtype = dtype, .a = d, .b = {}, .M = a.V, .N = a.C, .K = block_rows, .out = {}};
    if (a.grad_weight) {
        weights.out = either(*a.grad_weight);
        if (blocks > 1 && !weights.out.float32) {
            weights.out = {scratch<float>(static_cast<std::size_t>(a.V * a.C)), true};
        }
        weights.parts = scratch<float>(static_cast<std::size_t>(part_floats<architecture>(weights)));
    }
    RowSums biases{.dtype = dtype,
                   .grad_out = {logits, dtype == DType::float32},
                   .rows = most_rows,
                   .width = a.V,
                   .pitch = d.pitch};
    if (a.grad_bias) {
        biases.sums = {scratch<float>(static_cast<std::size_t>(a.V)), true};
        biases.parts = scratch<float>(static_cast<std::size_t>(part_floats(biases)));
    }

    for (std::int64_t block = 0; block < blocks; ++block) {
        const std::int64_t first = block * block_rows;
        const std::int64_t rows = std::min(block_rows, a.M - first);
        const Limit limit{&counted->count, first, rows};
        const Matrix hidden = gathered(a.hidden, a.C, list, limit, rows, gathered_rows);
        product<architecture>({.dtype = dtype,
                               .form = Form::rows_rows,
                               .a = hidden,
                               .b = weight,
                               .M = rows,
                               .N = a.V,
                               .K = a.C,
                               .m_limit = limit,
                               .epilogue = {.bias = either(a.bias), .out = {logits, true}, .pitch = pitch}});
        with_storage(dtype, [&](auto storage) {
            launch(losses_kernel<decltype(storage)>,
                   {.grid = static_cast<unsigned>(rows),
                    .block = losses_threads,
                    .shared_bytes = static_cast<std::size_t>(kept) * sizeof(float),
                    .most_shared_bytes = static_cast<std::size_t>(fitting) * sizeof(float)},
                   logits, pitch, a.V, list, counted, first, targets, pointer<const float>(a.grad_losses),
                   has_gradients, kept, losses);
        });
        if (a.grad_hidden) {
            product<architecture>({.dtype = dtype,
                                   .form = Form::rows_across,
                                   .a = d,
                                   .b = weight,
                                   .M = rows,
                                   .N = a.C,
                                   .K = a.V,
                                   .m_limit = limit,
                                   .epilogue = {.out = either(*a.grad_hidden), .pitch = a.C, .row_of = list + first}});
        }
        if (a.grad_weight) {
            weights.b = hidden;
            weights.k_limit = limit;
            weights.add = block > 0;
            weight_gradient<architecture>(weights);
        }
        if (a.grad_bias) {
            biases.limit = limit;
            biases.add = block > 0;
            sum_rows(biases);
        }
    }
    if (a.grad_weight && weights.out.data != a.grad_weight->data) {
        add_parts(static_cast<const float*>(weights.out.data), 1, a.V * a.C, either(*a.grad_weight), dtype, false);
    }
    if (a.grad_bias) {
        add_parts(static_cast<const float*>(biases.sums.data), 1, a.V, either(*a.grad_bias), dtype, false);
    }
    if (!a.loss || own_losses) return;
    launch(sum_losses_kernel, {.grid = 1, .block = sum_threads}, losses, a.M, mean, counted, pointer<float>(a.loss));
}

template void linear_cross_entropy_forward<80>(const linear_cross_entropy::Forward&);
template void linear_cross_entropy_forward<90>(const linear_cross_entropy::Forward&);

}  // namespace pygpt::cuda
