// Layer norm and its form without a mean, RMS norm, forward and backward: how a row is shared, for both. (rows, C) ->
// (rows, C). The formulas stand in layer_norm.cu and rms_norm.cu.
//
// A row belongs to a team of warps, as many as C needs; a thread owns every blockDim.x-th pack of 16 bytes of what is
// normalised, which a residual stream in float32 makes wider than x and y are: sums then run in float32's order. It
// holds the first ones in registers, all on their way from memory at one time, so that a row is read once; what is
// wider than a team can hold is read again, from the caches. Mean and variance take two passes; the second also mends
// what rounding did to the mean. A mean square takes one.
//
// Backward: a block owns a group of rows, which its teams take in turn, the next row on its way while one is worked on:
// each thread sums its own columns over its team's rows, for grad_weight and grad_bias, then the teams' sums are added
// in order, and then the groups' (tiles/column_sums.cuh). Teams are cut by C alone, groups by the number of rows.
//
// Products are kept from being fused with a later sum (__fmul_rn), or the compiler might do so for one alignment alone.
//
// The floors are reading x (and residual, grad_out, grad_sum) and writing what is asked for, each once; the backward
// has 8 C bytes a group on top (4 C without a bias), twice, which stay in L2.
#ifndef PYGPT_CUDA_NORM_CUH
#define PYGPT_CUDA_NORM_CUH

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/pointer.h"
#include "cuda/tiles/column_sums.cuh"
#include "cuda/tiles/pack.cuh"
#include "cuda/tiles/reduce.cuh"

namespace pygpt::cuda {
namespace {

// `centred`: layer norm. `Stream`: of the residual, and so of what is normalised. `kept`: packs that a thread holds in
// registers.
template <bool centred_, class Storage_, class Stream_, class Parameter_, bool aligned_, int kept_, int max_team_>
struct Traits {
    static constexpr bool centred = centred_;
    static constexpr int parameters = centred ? 2 : 1;  // whose gradients there are
    using Storage = Storage_;
    using Stream = Stream_;
    using Parameter = Parameter_;
    static constexpr bool aligned = aligned_;
    static constexpr int vector = pack_elements<Stream>;
    static constexpr int kept = kept_;
    static constexpr int max_team = max_team_;  // warps
    static int team(std::int64_t width) {
        return static_cast<int>(std::clamp<std::int64_t>(divide_up(width, warp_lanes * kept * vector), 1, max_team));
    }
};
template <bool centred, class Storage, class Stream, class Parameter, bool aligned>
using ForwardTraits = Traits<centred, Storage, Stream, Parameter, aligned, 32 / pack_elements<Stream>, 12>;
template <bool centred, class Storage, class Stream, class Parameter, bool aligned>
using BackwardTraits = Traits<centred, Storage, Stream, Parameter, aligned, sizeof(Stream) == 4 ? 3 : 2, 12>;

template <class T>
struct Forward {
    const typename T::Storage* x;
    const typename T::Stream* residual;
    const typename T::Parameter *weight, *bias;
    typename T::Storage* out;
    typename T::Stream* sum;
    float *mean, *rstd;
    std::int64_t rows, width;
    float eps;
};

// The packs of a row that a thread owns, the k-th from column at(k) on.
template <class T>
struct Owned {
    std::int64_t width, first, stride;
    int packs;

    __device__ explicit Owned(std::int64_t columns)
        : width(columns),
          first(std::int64_t{threadIdx.x} * T::vector),
          stride(std::int64_t{blockDim.x} * T::vector),
          packs(first < width ? static_cast<int>((width - first + stride - 1) / stride) : 0) {}

    __device__ std::int64_t at(int k) const { return first + k * stride; }

    // f(first column, k) for each, those past T::kept with k = T::kept.
    template <class F>
    __device__ void each(F f) const {
#pragma unroll
        for (int k = 0; k < T::kept; ++k) {
            if (k < packs) f(at(k), k);
        }
        each_past_kept(f);
    }
    template <class F>
    __device__ void each_past_kept(F f) const {
        for (int k = T::kept; k < packs; ++k) f(at(k), T::kept);
    }

    // Those of a row from the `from`-th on, as they lie in memory; what does not exist is 0. Nothing but loads, so that
    // all are on their way at one time.
    template <class Value, int count>
    __device__ void load_into(Pack<Value, T::vector> (&out)[count], const Value* row, int from = 0) const {
#pragma unroll
        for (int k = 0; k < count; ++k) {
            out[k] = {};
            if (from + k >= packs) continue;
            const Value* own = row + at(from + k);
            if constexpr (T::aligned) {
                out[k] = Pack<Value, T::vector>::from(own);
            } else {
                out[k] = Pack<Value, T::vector>::of_first(width - at(from + k), own);
            }
        }
    }
};

struct Statistics {
    float mean, rstd;
};

// Of the values part(i, k) of a row, by its team; mean is 0 where T is not centred.
template <class T, class F>
__device__ __forceinline__ Statistics statistics_of_row(const Owned<T>& owned, const F& part, float eps) {
    using Part = Floats<T::vector>;
    const float per_width = 1.0f / static_cast<float>(owned.width);
    __shared__ float shared[max_warps];
    if constexpr (!T::centred) {
        float squares = 0;
        owned.each([&](std::int64_t i, int k) {
            const Part values = part(i, k);
#pragma unroll
            for (int j = 0; j < T::vector; ++j) squares = fmaf(values.value[j], values.value[j], squares);
        });
        return {0.0f, 1.0f / sqrtf(fmaf(reduce_team(squares, shared, Sum{}), per_width, eps))};
    } else {
        __shared__ float2 shared_pair[max_warps];
        float sum = 0;
        owned.each([&](std::int64_t i, int k) {
            const Part values = part(i, k);
#pragma unroll
            for (int j = 0; j < T::vector; ++j) sum += values.value[j];
        });
        const float first_mean = __fmul_rn(reduce_team(sum, shared, Sum{}), per_width);

        float2 moments = {0, 0};  // Σ d, Σ d² of the distances from the first mean
        owned.each([&](std::int64_t i, int k) {
            const Part values = part(i, k);
#pragma unroll
            for (int j = 0; j < T::vector; ++j) {
                const float d = T::aligned || i + j < owned.width ? values.value[j] - first_mean : 0.0f;
                moments.x += d;
                moments.y = fmaf(d, d, moments.y);
            }
        });
        moments = reduce_team(moments, shared_pair, Sum{});
        const float correction = __fmul_rn(moments.x, per_width);
        const float mean = first_mean + correction;
        const float variance = fmaxf(0.0f, fmaf(-correction, correction, __fmul_rn(moments.y, per_width)));
        return {mean, 1.0f / sqrtf(variance + eps)};
    }
}

template <class T>
__device__ __forceinline__ void norm_forward(const Forward<T>& a) {
    using Stream = typename T::Stream;
    using Part = Floats<T::vector>;
    using Raw = Pack<Stream, T::vector>;
    using Factors = Pack<typename T::Parameter, T::vector>;
    const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
    if (row >= a.rows) return;  // a whole warp, which is then a whole team
    const auto* x = a.x + row * a.width;

    Raw held[T::kept];               // of what is normalised,
    const Stream* source = nullptr;  // which lies there
    Pack<typename T::Storage, T::vector> own[T::kept];
    const Owned<T> owned(a.width);
    owned.load_into(own, x);
    if (a.residual) {
        constexpr int at_once = 4;
        const Stream* residual = a.residual + row * a.width;
        Stream* total = a.sum + row * a.width;
        const auto add = [&](Part values, const Part& added, std::int64_t i) {
#pragma unroll
            for (int j = 0; j < T::vector; ++j) values.value[j] += added.value[j];
            store<T::aligned>(total + i, values, a.width - i);
            return Raw::of(values);
        };
#pragma unroll
        for (int first = 0; first < T::kept; first += at_once) {
            Raw added[at_once];
            owned.load_into(added, residual, first);
#pragma unroll
            for (int k = 0; k < at_once; ++k) {
                if (first + k >= owned.packs) break;
                held[first + k] = add(own[first + k].floats(), added[k].floats(), owned.at(first + k));
            }
        }
        owned.each_past_kept([&](std::int64_t i, int) {
            add(load<T::aligned, T::vector>(x + i, a.width - i), load<T::aligned, T::vector>(residual + i, a.width - i),
                i);
        });
        source = total;
    } else if constexpr (std::is_same_v<Stream, typename T::Storage>) {
#pragma unroll
        for (int k = 0; k < T::kept; ++k) held[k] = own[k];
        source = x;
    }
    const auto part = [&](std::int64_t i, int k) {
        return k < T::kept ? held[k].floats() : load<T::aligned, T::vector>(source + i, a.width - i);
    };

    const auto [mean, rstd] = statistics_of_row(owned, part, a.eps);

    auto* out = a.out + row * a.width;
    const auto write = [&](std::int64_t i, const Part& values, const Part& weight, const Part& shift) {
        Part result;
#pragma unroll
        for (int j = 0; j < T::vector; ++j) {
            const float n = (T::centred ? values.value[j] - mean : values.value[j]) * rstd;
            result.value[j] = T::centred ? fmaf(n, weight.value[j], shift.value[j]) : n * weight.value[j];
        }
        store<T::aligned>(out + i, result, a.width - i);
    };
    constexpr int at_once = sizeof(typename T::Parameter) > sizeof(Stream) ? 1 : 2;
#pragma unroll
    for (int first = 0; first < T::kept; first += at_once) {
        if (first >= owned.packs) break;
        Factors weight[at_once], shift[at_once] = {};
        owned.load_into(weight, a.weight, first);
        if (T::centred && a.bias) owned.load_into(shift, a.bias, first);
#pragma unroll
        for (int k = 0; k < at_once; ++k) {
            if (first + k >= owned.packs) break;
            write(owned.at(first + k), held[first + k].floats(), weight[k].floats(), shift[k].floats());
        }
    }
    owned.each_past_kept([&](std::int64_t i, int k) {
        Part shift = {};
        if (T::centred && a.bias) shift = load<T::aligned, T::vector>(a.bias + i, a.width - i);
        write(i, part(i, k), load<T::aligned, T::vector>(a.weight + i, a.width - i), shift);
    });
    if (threadIdx.x == 0) {
        if (T::centred && a.mean) a.mean[row] = mean;
        if (a.rstd) a.rstd[row] = rstd;
    }
}

constexpr std::int64_t wanted_groups = 256;  // two blocks for each multiprocessor of a large device
constexpr int backward_warps = 8;            // of a block, where teams are small

int rows_of_group(std::int64_t rows) {
    return static_cast<int>(std::clamp<std::int64_t>(divide_up(rows, wanted_groups), 16, 128));
}

template <class T>
struct Backward {
    const typename T::Storage* grad_out;
    const typename T::Stream *grad_sum, *x;
    const typename T::Parameter* weight;
    const float *mean, *rstd;
    typename T::Stream* grad_x;
    typename T::Storage* grad_narrow;  // null where nobody asks
    float* partial;  // (groups, parameters, C): grad_weight and grad_bias of each group; null if nobody asks
    std::int64_t rows, width;
    int group_rows;
};

// What the backward reads of a row.
template <class T>
struct BackwardRow {
    Pack<typename T::Stream, T::vector> x[T::kept];
    Pack<typename T::Storage, T::vector> grad_out[T::kept];
    float mean, rstd;

    __device__ void read(const Backward<T>& a, const Owned<T>& owned, std::int64_t row) {
        owned.load_into(x, a.x + row * a.width);
        owned.load_into(grad_out, a.grad_out + row * a.width);
        mean = T::centred ? a.mean[row] : 0.0f;
        rstd = a.rstd[row];
    }
};

template <class T>
__device__ __forceinline__ void norm_backward(const Backward<T>& a) {
    using Part = Floats<T::vector>;
    __shared__ float2 shared[2][max_warps];  // rows take turns, so that one barrier a row is enough
    __shared__ float team_parts[T::vector][backward_warps * warp_lanes];
    const int teams = static_cast<int>(blockDim.y);
    float* const grad_weight = a.partial ? a.partial + std::int64_t{blockIdx.x} * T::parameters * a.width : nullptr;
    float* const grad_bias = T::centred && a.partial ? grad_weight + a.width : nullptr;
    const float per_width = 1.0f / static_cast<float>(a.width);

    Pack<typename T::Parameter, T::vector> weights[T::kept];
    const Owned<T> owned(a.width);
    owned.load_into(weights, a.weight);
    const auto weight_at = [&](std::int64_t i, int k) {
        return k < T::kept ? weights[k].floats() : load<T::aligned, T::vector>(a.weight + i, a.width - i);
    };

    Part weight_sums[T::kept] = {}, bias_sums[T::kept] = {};
    const std::int64_t first_row = std::int64_t{blockIdx.x} * a.group_rows;
    const std::int64_t end_row = first_row + a.group_rows < a.rows ? first_row + a.group_rows : a.rows;
    const std::int64_t first_of_team = first_row + threadIdx.y;
    BackwardRow<T> next;  // on its way, unless it comes element by element
    if (T::aligned && first_of_team < end_row) next.read(a, owned, first_of_team);
    int turn = 0;
    for (int r = 0; r < a.group_rows; r += teams, turn ^= 1) {
        const std::int64_t row = first_of_team + r;
        const bool exists = row < end_row;  // all go round as often
        if (!T::aligned && exists) next.read(a, owned, row);
        const BackwardRow<T> own = next;
        if (T::aligned && row + teams < end_row) next.read(a, owned, row + teams);
        const auto* x = a.x + row * a.width;
        const auto* grad_out = a.grad_out + row * a.width;
        const auto* grad_sum = a.grad_sum ? a.grad_sum + row * a.width : nullptr;

        // The normalised x, and grad_out: 0 where nothing is, n does not matter there.
        const auto take = [&](std::int64_t i, int k, Part& n, Part& g) {
            n = k < T::kept ? own.x[k].floats() : load<T::aligned, T::vector>(x + i, a.width - i);
            g = k < T::kept ? own.grad_out[k].floats() : load<T::aligned, T::vector>(grad_out + i, a.width - i);
#pragma unroll
            for (int j = 0; j < T::vector; ++j) {
                n.value[j] = (T::centred ? n.value[j] - own.mean : n.value[j]) * own.rstd;
            }
        };
        float2 sums = {0, 0};  // Σ g, Σ g·n
        const auto add_to_sums = [&](std::int64_t i, int k) {
            Part n, g;
            take(i, k, n, g);
            const Part weight = weight_at(i, k);
#pragma unroll
            for (int j = 0; j < T::vector; ++j) {
                const float scaled = __fmul_rn(g.value[j], weight.value[j]);
                if (T::centred) sums.x += scaled;
                sums.y = fmaf(scaled, n.value[j], sums.y);
            }
        };
        if (exists) owned.each(add_to_sums);
        sums = reduce_team(sums, shared[turn], Sum{});
        if (!exists) continue;
        const float mean_g = __fmul_rn(sums.x, per_width);
        const float mean_gn = __fmul_rn(sums.y, per_width);
        auto* grad_x = a.grad_x + row * a.width;
        [[maybe_unused]] auto* grad_narrow = a.grad_narrow ? a.grad_narrow + row * a.width : nullptr;
        owned.each([&](std::int64_t i, int k) {
            Part n, g;
            take(i, k, n, g);
            const Part weight = weight_at(i, k);
            Part result = {};
            if (grad_sum) result = load<T::aligned, T::vector>(grad_sum + i, a.width - i);
#pragma unroll
            for (int j = 0; j < T::vector; ++j) {
                const float scaled = __fmul_rn(g.value[j], weight.value[j]);
                const float inner = fmaf(-n.value[j], mean_gn, T::centred ? scaled - mean_g : scaled);
                result.value[j] = fmaf(inner, own.rstd, result.value[j]);
            }
            store<T::aligned>(grad_x + i, result, a.width - i);
            if constexpr (!std::is_same_v<typename T::Stream, typename T::Storage>) {
                if (grad_narrow) store<T::aligned>(grad_narrow + i, result, a.width - i);
            }
            if (!a.partial) return;
            Part ws = {}, bs = {};
            if (k < T::kept) {
                ws = weight_sums[k], bs = bias_sums[k];
            } else if (row > first_row) {  // a team alone
                ws = load<T::aligned, T::vector>(grad_weight + i, a.width - i);
                if (T::centred) bs = load<T::aligned, T::vector>(grad_bias + i, a.width - i);
            }
#pragma unroll
            for (int j = 0; j < T::vector; ++j) {
                ws.value[j] = fmaf(g.value[j], n.value[j], ws.value[j]);
                if (T::centred) bs.value[j] += g.value[j];
            }
            if (k < T::kept) {
                weight_sums[k] = ws, bias_sums[k] = bs;
            } else {
                store<T::aligned>(grad_weight + i, ws, a.width - i);
                if (T::centred) store<T::aligned>(grad_bias + i, bs, a.width - i);
            }
        });
    }
    if (!a.partial) return;
    int written = 0;
    const auto write = [&](float* out, const Part& own, int k) {
        const std::int64_t i = owned.at(k);
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
        if (T::centred) write(grad_bias, bias_sums[k], k);
    }
}

// f(storage, stream, parameter, aligned) with values of the types that the arguments need: what goes through the norm's
// input and output, what is normalised, and the weight, which is float32 where these two differ; aligned is a
// std::bool_constant.
template <class F>
void with_types(DType storage, DType stream, DType parameter, bool aligned, F f) {
    with_storage(storage, [&](auto s) {
        const auto with_others = [&](auto t, auto p) {
            if (aligned) return f(s, t, p, std::true_type{});
            return f(s, t, p, std::false_type{});
        };
        if constexpr (sizeof(s) == 2) {
            if (stream == DType::float32) return with_others(float{}, float{});
        }
        if (parameter == DType::float32) return with_others(s, float{});
        return with_others(s, s);
    });
}

// Launches the kernel<T>() that fits, T of ForwardTraits; Arguments are those of either op.
template <bool centred, class Arguments, class Kernel>
void launch_forward(const Arguments& a, void* bias, float* mean, Kernel kernel) {
    const DType stream = a.residual ? a.residual->dtype : a.x.dtype;
    const int vector = pack_bytes / static_cast<int>(bytes_of(stream));
    const bool aligned = in_packs(
        vector, a.width, {a.x.data, pointer<void>(a.residual), a.weight.data, bias, a.out.data, pointer<void>(a.sum)});
    const auto run = [&]<class Storage, class Stream, class Parameter, bool is_aligned>(
                         Storage, Stream, Parameter, std::bool_constant<is_aligned>) {
        using T = ForwardTraits<centred, Storage, Stream, Parameter, is_aligned>;
        const int team = T::team(a.width);
        const int teams = team == 1 ? 4 : 1;
        launch(kernel.template operator()<T>(),
               {.grid = static_cast<unsigned>(divide_up(a.rows, teams)), .block = dim3(team * warp_lanes, teams)},
               Forward<T>{pointer<Storage>(a.x), pointer<Stream>(a.residual), pointer<Parameter>(a.weight),
                          static_cast<Parameter*>(bias), pointer<Storage>(a.out), pointer<Stream>(a.sum), mean,
                          pointer<float>(a.rstd), a.rows, a.width, static_cast<float>(a.eps)});
    };
    with_types(a.x.dtype, stream, a.weight.dtype, aligned, run);
}

// The same with BackwardTraits.
template <bool centred, class Arguments, class Kernel>
void launch_backward(const Arguments& a, const float* mean, void* grad_bias, Kernel kernel) {
    const int vector = pack_bytes / static_cast<int>(bytes_of(a.x.dtype));
    const bool aligned = in_packs(vector, a.width,
                                  {a.grad_out.data, pointer<void>(a.grad_sum), a.x.data, a.weight.data, a.grad_x.data,
                                   pointer<void>(a.grad_narrow)});
    const auto run = [&]<class Storage, class Stream, class Parameter, bool is_aligned>(
                         Storage, Stream, Parameter, std::bool_constant<is_aligned>) {
        using T = BackwardTraits<centred, Storage, Stream, Parameter, is_aligned>;
        const int group_rows = rows_of_group(a.rows);
        const std::int64_t groups = divide_up(a.rows, group_rows), columns = T::parameters * a.width;
        float* partial = nullptr;
        if (a.grad_weight || grad_bias) partial = scratch<float>(static_cast<std::size_t>(groups * columns));
        const int team = T::team(a.width);
        const int teams = std::max(1, backward_warps / team);
        launch(kernel.template operator()<T>(),
               {.grid = static_cast<unsigned>(groups), .block = dim3(team * warp_lanes, teams)},
               Backward<T>{pointer<Storage>(a.grad_out), pointer<Stream>(a.grad_sum), pointer<Stream>(a.x),
                           pointer<Parameter>(a.weight), mean, pointer<float>(a.rstd), pointer<Stream>(a.grad_x),
                           pointer<Storage>(a.grad_narrow), partial, a.rows, a.width, group_rows});
        if (partial == nullptr) return;
        column_sums(partial, groups, columns, a.width, pointer<Parameter>(a.grad_weight),
                    static_cast<Parameter*>(grad_bias));
    };
    with_types(a.grad_out.dtype, a.x.dtype, a.weight.dtype, aligned, run);
}

}  // namespace
}  // namespace pygpt::cuda

#endif
