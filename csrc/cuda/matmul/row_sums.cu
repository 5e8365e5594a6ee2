// Sums over rows, for gradients of biases, and over the parts that a long sum was cut into.
//
// g = grad_out · activation'(pre_activation) (rows, width), sums[j] = Σ_i g[i, j]. A block owns 128 columns of a group
// of 64 rows, so that a few hundred rows keep many blocks busy: each of 8 warps adds up every eighth row, a lane 4
// columns, then the warps' sums are added in order, and the groups' sums by a second kernel, 16 side by side. So what
// is added to what depends on the number of rows alone, and the error grows with its logarithm. The floor is reading
// grad_out and pre_activation once, and writing g once.
#include "cuda/launch.h"
#include "cuda/matmul/activation.cuh"
#include "cuda/matmul/product.h"
#include "cuda/number.cuh"
#include "cuda/tiles/column_sums.cuh"
#include "cuda/tiles/pack.cuh"
#include "cuda/tiles/reduce.cuh"

namespace pygpt::cuda {
namespace {

constexpr int warps = 8;
constexpr int threads = warps * warp_lanes;
constexpr int columns_of_block = warp_lanes * 4;
constexpr std::int64_t rows_of_group = 64;
constexpr std::int64_t parts_per_sum = 32;

struct Parameters {
    const void* grad_out;
    const void* pre_activation;
    void* written;
    float* sums;  // (groups, width)
    std::int64_t rows, width, pitch;
    Limit limit;
    Activation activation;
};

template <bool packs, class Storage>
__device__ Pack<Storage, 4> pack_at(const Storage* from, std::int64_t left) {
    if constexpr (packs) {
        return Pack<Storage, 4>::from(from);
    } else {
        return Pack<Storage, 4>::of_first(left, from);
    }
}

// From: what grad_out is stored as; Storage: what g and pre_activation are.
template <class From, class Storage, bool packs>
__global__ void __launch_bounds__(threads) sum_rows_kernel(const __grid_constant__ Parameters p) {
    __shared__ float4 of_warp[warps][warp_lanes];
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
    const std::int64_t column = std::int64_t{blockIdx.y} * columns_of_block + lane * 4;
    const std::int64_t left = p.width - column;
    const std::int64_t first = std::int64_t{blockIdx.x} * rows_of_group;
    std::int64_t end = p.limit.count ? *p.limit.count - p.limit.first : p.rows;
    if (end > p.rows) end = p.rows;
    if (end > first + rows_of_group) end = first + rows_of_group;

    constexpr int rows_of_warp = rows_of_group / warps;
    Pack<From, 4> gradients[rows_of_warp];  // all on their way at one time
    Pack<Storage, 4> pre_activations[rows_of_warp];
#pragma unroll
    for (int k = 0; k < rows_of_warp; ++k) {
        const std::int64_t row = first + warp + k * warps;
        if (left <= 0 || row >= end) continue;
        gradients[k] = pack_at<packs>(static_cast<const From*>(p.grad_out) + row * p.pitch + column, left);
        if (!p.pre_activation) continue;
        pre_activations[k] =
            pack_at<packs>(static_cast<const Storage*>(p.pre_activation) + row * p.width + column, left);
    }
    Floats<4> sum{};
    if (left > 0) {
#pragma unroll
        for (int k = 0; k < rows_of_warp; ++k) {
            const std::int64_t row = first + warp + k * warps;
            if (row >= end) break;
            Floats<4> g = gradients[k].floats();
            const std::int64_t at = row * p.width + column;
            if (p.pre_activation) {
                const Floats<4> z = pre_activations[k].floats();
                for (int i = 0; i < 4; ++i) g.value[i] *= activate_with_slope(p.activation, z.value[i]).slope;
            }
            if (p.written) store<packs, 4>(static_cast<Storage*>(p.written) + at, g, left);
            for (int i = 0; i < 4; ++i) sum.value[i] += g.value[i];
        }
    }
    if (!p.sums) return;
    of_warp[warp][lane] = {sum.value[0], sum.value[1], sum.value[2], sum.value[3]};
    __syncthreads();
    if (warp > 0 || left <= 0) return;
    for (int other = 1; other < warps; ++other) {
        const float4 more = of_warp[other][lane];
        sum.value[0] += more.x;
        sum.value[1] += more.y;
        sum.value[2] += more.z;
        sum.value[3] += more.w;
    }
    store<packs, 4>(p.sums + blockIdx.x * p.width + column, sum, left);
}

// A thread adds up `count` neighbours.
template <class Storage, int count>
__global__ void __launch_bounds__(threads)
    add_parts_kernel(const float* parts, std::int64_t part_count, std::int64_t elements, Storage* out, bool add) {
    constexpr bool packs = count > 1;
    const std::int64_t at = (std::int64_t{blockIdx.x} * threads + threadIdx.x) * count;
    if (at >= elements) return;
    Floats<count> total = {};
    if (add) total = load<packs, count>(out + at, count);
    for (std::int64_t first = 0; first < part_count; first += parts_per_sum) {
        const std::int64_t end = first + parts_per_sum < part_count ? first + parts_per_sum : part_count;
        Floats<count> sum = {};
#pragma unroll 4
        for (std::int64_t part = first; part < end; ++part) {
            const auto more = load<packs, count>(parts + part * elements + at, count);
#pragma unroll
            for (int i = 0; i < count; ++i) sum.value[i] += more.value[i];
        }
#pragma unroll
        for (int i = 0; i < count; ++i) total.value[i] += sum.value[i];
    }
    store<packs>(out + at, total, count);
}

// Calls f with a pointer to `memory` of the type it is stored as.
template <class F>
void with_pointer(const Either& memory, DType dtype, F&& f) {
    if (memory.float32) return f(static_cast<float*>(memory.data));
    with_storage(dtype, [&](auto storage) { f(static_cast<decltype(storage)*>(memory.data)); });
}

}  // namespace

void add_parts(const float* parts, std::int64_t count, std::int64_t elements, Either out, DType dtype, bool add) {
    const auto run = [&](auto kernel, int of_thread, auto* to) {
        launch(kernel, {.grid = static_cast<unsigned>(divide_up(elements, threads * of_thread)), .block = threads},
               parts, count, elements, to, add);
    };
    with_pointer(out, dtype, [&](auto* to) {
        using Out = std::remove_pointer_t<decltype(to)>;
        if (in_packs(4, elements, {parts, to})) return run(add_parts_kernel<Out, 4>, 4, to);
        run(add_parts_kernel<Out, 1>, 1, to);
    });
}

std::int64_t part_floats(const RowSums& s) {
    return divide_up(s.rows, rows_of_group) * s.width;
}

void sum_rows(const RowSums& s) {
    const std::int64_t groups = divide_up(s.rows, rows_of_group);
    const bool has_sums = s.sums.data != nullptr;
    float* sums = has_sums ? s.parts : nullptr;
    if (has_sums && !sums) sums = scratch<float>(static_cast<std::size_t>(part_floats(s)));
    const Parameters parameters{
        .grad_out = s.grad_out.data,
        .pre_activation = s.pre_activation,
        .written = s.written,
        .sums = sums,
        .rows = s.rows,
        .width = s.width,
        .pitch = s.pitch,
        .limit = s.limit,
        .activation = s.activation,
    };
    const Launch shape{
        .grid = dim3(static_cast<unsigned>(groups), static_cast<unsigned>(divide_up(s.width, columns_of_block))),
        .block = threads};
    const bool packs = s.pitch % 4 == 0 && in_packs(4, s.width, {s.grad_out.data, s.pre_activation, s.written});
    with_storage(s.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        with_pointer(s.grad_out, s.dtype, [&](auto* from) {
            using From = std::remove_pointer_t<decltype(from)>;
            if constexpr (std::is_same_v<From, Storage> || std::is_same_v<From, float>) {
                launch(packs ? sum_rows_kernel<From, Storage, true> : sum_rows_kernel<From, Storage, false>, shape,
                       parameters);
            }
        });
    });
    if (has_sums)
        with_pointer(s.sums, s.dtype, [&](auto* to) {
            using Out = std::remove_pointer_t<decltype(to)>;
            column_sums<Out>(sums, groups, s.width, s.width, to, nullptr, s.add);
        });
}

}  // namespace pygpt::cuda
