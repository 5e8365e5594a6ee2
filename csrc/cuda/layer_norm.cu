// Layer norm, forward and backward. (rows, C) -> (rows, C)
//
// Forward, per row:   sum = x + residual;  mean = Σ sum / C;  rstd = 1 / sqrt(Σ (sum - mean)² / C + eps)
//                     y = (sum - mean) · rstd · weight + bias
// Backward, per row:  n = (x - mean) · rstd;  g = grad_out · weight
//                     grad_x = rstd · (g - Σ g / C - n · Σ g·n / C) + grad_sum
//          per column: grad_weight = Σ_rows grad_out · n;  grad_bias = Σ_rows grad_out
//
// A row belongs to a team of warps, as many as C needs; a thread owns every blockDim.x-th pack of 16 bytes. Forward: it
// holds the first ones in registers, so that a row is read from memory once; what is wider than a team can hold is read
// again, from the caches. Mean and variance take two passes; the second also mends what rounding did to the mean.
//
// Backward: registers hold what is longest in use, the sums for grad_weight and grad_bias, and a row is read a second
// time from L1. A block owns `rows_per_group` rows, which its teams take in turn: each thread sums its own columns over
// its team's rows, then the teams' sums are added in order, and then the groups' (tiles/column_sums.cuh). Teams are cut
// by C alone.
//
// Products are kept from being fused with a later sum (__fmul_rn), or the compiler might do so for one alignment alone.
//
// The floors are reading x (and residual, grad_out, grad_sum) and writing what is asked for, each once; the backward
// has 8 C / rows_per_group bytes a row on top, twice, which stay in L2.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/pointer.h"
#include "cuda/tiles/column_sums.cuh"
#include "cuda/tiles/pack.cuh"
#include "cuda/tiles/reduce.cuh"

namespace pygpt::cuda {
namespace {

template <class Storage_, class Parameter_, bool aligned_, int kept_elements>
struct Traits {
    using Storage = Storage_;
    using Parameter = Parameter_;
    static constexpr bool aligned = aligned_;
    static constexpr int vector = pack_elements<Storage>;
    static constexpr int kept = kept_elements / vector;  // packs that a thread holds in registers
    static constexpr int max_team = 16;                  // warps
    static constexpr int held_by_warp = warp_lanes * kept_elements;
    static int team(std::int64_t width) {
        return static_cast<int>(std::clamp<std::int64_t>(divide_up(width, held_by_warp), 1, max_team));
    }
};
template <class Storage, class Parameter, bool aligned>
using ForwardTraits = Traits<Storage, Parameter, aligned, 32>;
template <class Storage, class Parameter, bool aligned>
using BackwardTraits = Traits<Storage, Parameter, aligned, 16>;

template <class T>
struct Forward {
    const typename T::Storage *x, *residual;
    const typename T::Parameter *weight, *bias;
    typename T::Storage *out, *sum;
    float *mean, *rstd;
    std::int64_t rows, width;
    float eps;
};

// The packs of a row that a thread owns: f(first column, k) for the k-th, those past T::kept with k = T::kept.
template <class T, class F>
__device__ void each_pack(std::int64_t width, F f) {
    const std::int64_t stride = std::int64_t{blockDim.x} * T::vector;
    std::int64_t i = std::int64_t{threadIdx.x} * T::vector;
#pragma unroll
    for (int k = 0; k < T::kept; ++k, i += stride) {
        if (i < width) f(i, k);
    }
    for (; i < width; i += stride) f(i, T::kept);
}

template <class T>
__global__ void __launch_bounds__(T::max_team* warp_lanes, 1) layer_norm_forward_kernel(const Forward<T> a) {
    using Part = Floats<T::vector>;
    __shared__ float shared[max_warps];
    __shared__ float2 shared_pair[max_warps];
    const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
    if (row >= a.rows) return;  // a whole warp, which is then a whole team
    const auto* x = a.x + row * a.width;
    const auto* residual = a.residual ? a.residual + row * a.width : nullptr;
    auto* total = a.residual ? a.sum + row * a.width : nullptr;
    const auto* source = a.residual ? total : x;  // of what is read again

    Part held[T::kept] = {};
    const auto part = [&](std::int64_t i, int k) {
        return k < T::kept ? held[k] : load<T::aligned, T::vector>(source + i, a.width - i);
    };

    float sum = 0;
    each_pack<T>(a.width, [&](std::int64_t i, int k) {
        Part values = load<T::aligned, T::vector>(x + i, a.width - i);
        if (residual) {
            const Part added = load<T::aligned, T::vector>(residual + i, a.width - i);
#pragma unroll
            for (int j = 0; j < T::vector; ++j) {
                values.value[j] = to_float(from_float<typename T::Storage>(values.value[j] + added.value[j]));
            }
            store<T::aligned>(total + i, values, a.width - i);
        }
        if (k < T::kept) held[k] = values;
#pragma unroll
        for (int j = 0; j < T::vector; ++j) sum += values.value[j];
    });
    const float per_width = 1.0f / static_cast<float>(a.width);
    const float first_mean = __fmul_rn(reduce_team(sum, shared, Sum{}), per_width);

    float2 moments = {0, 0};  // Σ d, Σ d² of the distances from the first mean
    each_pack<T>(a.width, [&](std::int64_t i, int k) {
        const Part values = part(i, k);
#pragma unroll
        for (int j = 0; j < T::vector; ++j) {
            const float d = T::aligned || i + j < a.width ? values.value[j] - first_mean : 0.0f;
            moments.x += d;
            moments.y = fmaf(d, d, moments.y);
        }
    });
    moments = reduce_team(moments, shared_pair, Sum{});
    const float correction = __fmul_rn(moments.x, per_width);
    const float mean = first_mean + correction;
    const float variance = fmaxf(0.0f, fmaf(-correction, correction, __fmul_rn(moments.y, per_width)));
    const float rstd = 1.0f / sqrtf(variance + a.eps);

    auto* out = a.out + row * a.width;
    each_pack<T>(a.width, [&](std::int64_t i, int k) {
        const Part values = part(i, k);
        const Part weight = load<T::aligned, T::vector>(a.weight + i, a.width - i);
        Part shift = {};
        if (a.bias) shift = load<T::aligned, T::vector>(a.bias + i, a.width - i);
        Part result;
#pragma unroll
        for (int j = 0; j < T::vector; ++j) {
            result.value[j] = fmaf((values.value[j] - mean) * rstd, weight.value[j], shift.value[j]);
        }
        store<T::aligned>(out + i, result, a.width - i);
    });
    if (threadIdx.x == 0) {
        if (a.mean) a.mean[row] = mean;
        if (a.rstd) a.rstd[row] = rstd;
    }
}

constexpr int rows_per_group = 32;
constexpr int backward_warps = 8;  // of a block, where teams are small

template <class T>
struct Backward {
    const typename T::Storage *grad_out, *grad_sum, *x;
    const typename T::Parameter* weight;
    const float *mean, *rstd;
    typename T::Storage* grad_x;
    float* partial;  // (groups, 2, C): grad_weight and grad_bias of each group; null if nobody asks
    std::int64_t rows, width;
};

template <class T>
__global__ void __launch_bounds__(T::max_team* warp_lanes, 1) layer_norm_backward_kernel(const Backward<T> a) {
    using Part = Floats<T::vector>;
    __shared__ float2 shared[max_warps];
    __shared__ float team_parts[T::vector][backward_warps * warp_lanes];
    const int teams = static_cast<int>(blockDim.y);
    float* const grad_weight = a.partial ? a.partial + std::int64_t{blockIdx.x} * 2 * a.width : nullptr;
    float* const grad_bias = a.partial ? grad_weight + a.width : nullptr;
    const float per_width = 1.0f / static_cast<float>(a.width);

    Part weight_sums[T::kept] = {}, bias_sums[T::kept] = {};
    bool first = true;  // row of the group; teams that share a group hold all they own
    for (int r = static_cast<int>(threadIdx.y); r < rows_per_group; r += teams) {
        const std::int64_t row = std::int64_t{blockIdx.x} * rows_per_group + r;
        const bool exists = row < a.rows;
        const auto* x = a.x + row * a.width;
        const auto* grad_out = a.grad_out + row * a.width;
        const float mean = exists ? a.mean[row] : 0.0f;
        const float rstd = exists ? a.rstd[row] : 0.0f;

        const auto read = [&](std::int64_t i, Part& n, Part& g) {
            n = load<T::aligned, T::vector>(x + i, a.width - i);
            g = load<T::aligned, T::vector>(grad_out + i, a.width - i);  // 0 where nothing is: n does not matter there
#pragma unroll
            for (int j = 0; j < T::vector; ++j) n.value[j] = (n.value[j] - mean) * rstd;
        };
        float2 sums = {0, 0};  // Σ g, Σ g·n
        if (exists) {
            each_pack<T>(a.width, [&](std::int64_t i, int) {
                Part n, g;
                read(i, n, g);
                const Part weight = load<T::aligned, T::vector>(a.weight + i, a.width - i);
#pragma unroll
                for (int j = 0; j < T::vector; ++j) {
                    const float scaled = __fmul_rn(g.value[j], weight.value[j]);
                    sums.x += scaled;
                    sums.y = fmaf(scaled, n.value[j], sums.y);
                }
            });
        }
        if (blockDim.x > warp_lanes) __syncthreads();  // the last row's sums have been read
        sums = reduce_team(sums, shared, Sum{});
        if (!exists) continue;
        const float mean_g = __fmul_rn(sums.x, per_width);
        const float mean_gn = __fmul_rn(sums.y, per_width);
        auto* grad_x = a.grad_x + row * a.width;
        const auto* grad_sum = a.grad_sum ? a.grad_sum + row * a.width : nullptr;
        each_pack<T>(a.width, [&](std::int64_t i, int k) {
            Part n, g;
            read(i, n, g);
            const Part weight = load<T::aligned, T::vector>(a.weight + i, a.width - i);
            Part result = {};
            if (grad_sum) result = load<T::aligned, T::vector>(grad_sum + i, a.width - i);
#pragma unroll
            for (int j = 0; j < T::vector; ++j) {
                const float inner = fmaf(-n.value[j], mean_gn, __fmul_rn(g.value[j], weight.value[j]) - mean_g);
                result.value[j] = fmaf(inner, rstd, result.value[j]);
            }
            store<T::aligned>(grad_x + i, result, a.width - i);
            if (!a.partial) return;
            Part ws = {}, bs = {};
            if (k < T::kept) {
                ws = weight_sums[k], bs = bias_sums[k];
            } else if (!first) {
                ws = load<T::aligned, T::vector>(grad_weight + i, a.width - i);
                bs = load<T::aligned, T::vector>(grad_bias + i, a.width - i);
            }
#pragma unroll
            for (int j = 0; j < T::vector; ++j) {
                ws.value[j] = fmaf(g.value[j], n.value[j], ws.value[j]);
                bs.value[j] += g.value[j];
            }
            if (k < T::kept) {
                weight_sums[k] = ws, bias_sums[k] = bs;
            } else {
                store<T::aligned>(grad_weight + i, ws, a.width - i);
                store<T::aligned>(grad_bias + i, bs, a.width - i);
            }
        });
        first = false;
    }
    if (!a.partial) return;
    int written = 0;
    const auto write = [&](float* out, const Part& own, int k) {
        const std::int64_t i = (std::int64_t{k} * blockDim.x + threadIdx.x) * T::vector;
        Part total = own;
        if (teams > 1) {
            if (written++ > 0) __syncthreads();  // the last pack's parts have been added
#pragma unroll
            for (int j = 0; j < T::vector; ++j) team_parts[j][threadIdx.y * blockDim.x + threadIdx.x] = own.value[j];
            __syncthreads();
            if (threadIdx.y > 0) return;
            for (int team = 1; team < teams; ++team) {
#pragma unroll
                for (int j = 0; j < T::vector; ++j) total.value[j] += team_parts[j][team * blockDim.x + threadIdx.x];
            }
        }
        if (i < a.width) store<T::aligned>(out + i, total, a.width - i);
    };
#pragma unroll
    for (int k = 0; k < T::kept; ++k) {
        write(grad_weight, weight_sums[k], k);
        write(grad_bias, bias_sums[k], k);
    }
}

// f(storage, parameter, aligned) with values of the types that the arguments need; aligned is a std::bool_constant.
template <class F>
void with_types(DType storage, DType parameter, bool aligned, F f) {
    with_storage(storage, [&](auto s) {
        const auto with_parameter = [&](auto p) {
            if (aligned) return f(s, p, std::true_type{});
            return f(s, p, std::false_type{});
        };
        if (parameter == DType::float32) return with_parameter(float{});
        return with_parameter(s);
    });
}

}  // namespace

void layer_norm_forward(const layer_norm::Forward& a) {
    const int vector = pack_bytes / static_cast<int>(bytes_of(a.x.dtype));
    const bool aligned = in_packs(
        vector, a.width,
        {a.x.data, pointer<void>(a.residual), a.weight.data, pointer<void>(a.bias), a.out.data, pointer<void>(a.sum)});
    with_types(a.x.dtype, a.weight.dtype, aligned, [&](auto storage, auto parameter, auto is_aligned) {
        using Storage = decltype(storage);
        using Parameter = decltype(parameter);
        using T = ForwardTraits<Storage, Parameter, decltype(is_aligned)::value>;
        const int team = T::team(a.width);
        const int teams = team == 1 ? 4 : 1;
        launch(layer_norm_forward_kernel<T>,
               {.grid = static_cast<unsigned>(divide_up(a.rows, teams)), .block = dim3(team * warp_lanes, teams)},
               Forward<T>{pointer<Storage>(a.x), pointer<Storage>(a.residual), pointer<Parameter>(a.weight),
                          pointer<Parameter>(a.bias), pointer<Storage>(a.out), pointer<Storage>(a.sum),
                          pointer<float>(a.mean), pointer<float>(a.rstd), a.rows, a.width, static_cast<float>(a.eps)});
    });
}

void layer_norm_backward(const layer_norm::Backward& a) {
    const int vector = pack_bytes / static_cast<int>(bytes_of(a.x.dtype));
    const bool aligned =
        in_packs(vector, a.width, {a.grad_out.data, pointer<void>(a.grad_sum), a.x.data, a.weight.data, a.grad_x.data});
    with_types(a.x.dtype, a.weight.dtype, aligned, [&](auto storage, auto parameter, auto is_aligned) {
        using Storage = decltype(storage);
        using Parameter = decltype(parameter);
        using T = BackwardTraits<Storage, Parameter, decltype(is_aligned)::value>;
        const std::int64_t groups = divide_up(a.rows, rows_per_group);
        float* partial = nullptr;
        if (a.grad_weight || a.grad_bias) partial = scratch<float>(static_cast<std::size_t>(groups * 2 * a.width));
        const int team = T::team(a.width);
        const int teams = std::max(1, backward_warps / team);
        launch(layer_norm_backward_kernel<T>,
               {.grid = static_cast<unsigned>(groups), .block = dim3(team * warp_lanes, teams)},
               Backward<T>{pointer<Storage>(a.grad_out), pointer<Storage>(a.grad_sum), pointer<Storage>(a.x),
                           pointer<Parameter>(a.weight), pointer<float>(a.mean), pointer<float>(a.rstd),
                           pointer<Storage>(a.grad_x), partial, a.rows, a.width});
        const auto add_groups = [&](const float* sums, Parameter* out) {
            if (out) column_sums(sums, groups, 2 * a.width, a.width, out);
        };
        add_groups(partial, pointer<Parameter>(a.grad_weight));
        add_groups(partial + a.width, pointer<Parameter>(a.grad_bias));
    });
}

}  // namespace pygpt::cuda
