// The norm of many tensors together.
//
// A block sums the squares of a run of elements of one tensor (tiles/runs.cuh) in float32: each thread its packs, then
// lanes and warps. One block adds these sums in double, in an order that their number decides. The floor is reading
// each element once.
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/pointer.h"
#include "cuda/tiles/pack.cuh"
#include "cuda/tiles/reduce.cuh"
#include "cuda/tiles/runs.cuh"

namespace pygpt::cuda {
namespace {

constexpr int threads = 256;

struct Item {
    const void* data;
    std::int64_t elements, first_run;
    bool aligned;
};

template <class Storage, bool aligned>
__device__ float sum_of_squares(const Storage* x, std::int64_t count) {
    constexpr int vector = pack_elements<Storage>;
    float sum = 0;
#pragma unroll 4
    for (std::int64_t i = threadIdx.x * vector; i < count; i += threads * vector) {
        const auto values = load<aligned, vector>(x + i, count - i);
#pragma unroll
        for (int j = 0; j < vector; ++j) sum = fmaf(values.value[j], values.value[j], sum);
    }
    return sum;
}

template <class Storage>
__global__ void __launch_bounds__(threads)
    grad_norm_forward_kernel(const __grid_constant__ Runs<Item> runs, float* sums) {
    __shared__ float shared[threads / warp_lanes];
    const Item& item = runs.of(blockIdx.x);
    const std::int64_t first = (blockIdx.x - item.first_run) * elements_per_run;
    const std::int64_t left = item.elements - first;
    const std::int64_t count = left < elements_per_run ? left : elements_per_run;
    const auto* x = static_cast<const Storage*>(item.data) + first;
    const float sum = item.aligned ? sum_of_squares<Storage, true>(x, count) : sum_of_squares<Storage, false>(x, count);
    const float total = reduce_team(sum, shared, Sum{});
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// One block.
__global__ void __launch_bounds__(threads) grad_norm_sum_kernel(const float* sums, std::int64_t count, float* out) {
    __shared__ double shared[threads / warp_lanes];
    double total = 0;
    for (std::int64_t i = threadIdx.x; i < count; i += threads) total += static_cast<double>(sums[i]);
    total = reduce_team(total, shared, Sum{});
    if (threadIdx.x == 0) *out = static_cast<float>(sqrt(total));
}

}  // namespace

void grad_norm_forward(const grad_norm::Forward& a) {
    std::int64_t count = 0;
    for (const TensorView& tensor : a.tensors) count += divide_up(elements(tensor), elements_per_run);
    float* const sums = scratch<float>(static_cast<std::size_t>(count));
    float* next = sums;
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
        with_storage(dtype, [&](auto storage) {
            using Storage = decltype(storage);
            Runs<Item> runs{};
            const auto start = [&] {
                launch(grad_norm_forward_kernel<Storage>, {.grid = static_cast<unsigned>(runs.runs), .block = threads},
                       runs, next);
                next += runs.runs;
                runs.clear();
            };
            for (const TensorView& tensor : a.tensors) {
                if (tensor.dtype != dtype) continue;
                if (runs.full()) start();
                const std::int64_t size = elements(tensor);
                runs.add({tensor.data, size, 0, in_packs(pack_elements<Storage>, size, {tensor.data})});
            }
            start();
        });
    }
    launch(grad_norm_sum_kernel, {.grid = 1, .block = threads}, sums, count, pointer<float>(a.out));
}

}  // namespace pygpt::cuda
