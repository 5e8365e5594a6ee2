// Sum of two tensors, the second repeated over leading dimensions. x (R, W), y (W,) -> out (R, W)
//
// A thread owns a pack of neighbouring elements. Forward: of x. Backward: grad_y[i] = Σ_r grad_out[r, i]; a thread owns
// a pack of columns in a group of rows and sums them in order of r; where there are several groups, their sums are
// added afterwards (tiles/column_sums.cuh), so that neither the error nor the time grows with all of R. Both floors are
// reading and writing each element once; the backward has 8 W / rows_per_group bytes a row on top.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/pointer.h"
#include "cuda/tiles/column_sums.cuh"
#include "cuda/tiles/pack.cuh"

namespace pygpt::cuda {
namespace {

constexpr int threads = 256;
constexpr std::int64_t rows_per_group = 64;

template <class Storage, bool aligned>
__global__ void __launch_bounds__(threads)
    add_forward_kernel(const Storage* x, const Storage* y, Storage* out, std::int64_t elements, std::int64_t width) {
    constexpr int vector = aligned ? pack_elements<Storage> : 1;
    const std::int64_t i = (std::int64_t{blockIdx.x} * threads + threadIdx.x) * vector;
    if (i >= elements) return;
    auto sum = load<aligned, vector>(x + i, elements - i);
    const auto added = load<aligned, vector>(y + i % width, 1);
#pragma unroll
    for (int j = 0; j < vector; ++j) sum.value[j] += added.value[j];
    store<aligned>(out + i, sum, elements - i);
}

// out[group, column], over the rows of each group.
template <class Storage, class Out, bool aligned>
__global__ void __launch_bounds__(threads)
    add_backward_kernel(const Storage* grad_out, Out* out, std::int64_t rows, std::int64_t width) {
    constexpr int vector = pack_elements<Storage>;
    const std::int64_t blocks = (width + threads * vector - 1) / (threads * vector);  // of a group
    const std::int64_t group = blockIdx.x / blocks;
    const std::int64_t column = (blockIdx.x % blocks * threads + threadIdx.x) * vector;
    if (column >= width) return;
    const std::int64_t first = group * rows_per_group;
    const std::int64_t end = first + rows_per_group < rows ? first + rows_per_group : rows;
    Floats<vector> sum = {};
#pragma unroll 4
    for (std::int64_t row = first; row < end; ++row) {
        const auto values = load<aligned, vector>(grad_out + row * width + column, width - column);
#pragma unroll
        for (int j = 0; j < vector; ++j) sum.value[j] += values.value[j];
    }
    store<aligned>(out + group * width + column, sum, width - column);
}

}  // namespace

void add_forward(const add::Forward& a) {
    with_storage(a.x.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        const std::int64_t elements = a.repeats * a.width;
        const auto run = [&](auto kernel, int vector) {
            launch(kernel, {.grid = static_cast<unsigned>(divide_up(elements, threads * vector)), .block = threads},
                   pointer<Storage>(a.x), pointer<Storage>(a.y), pointer<Storage>(a.out), elements, a.width);
        };
        if (in_packs(pack_elements<Storage>, a.width, {a.x.data, a.y.data, a.out.data})) {
            run(add_forward_kernel<Storage, true>, pack_elements<Storage>);
        } else {
            run(add_forward_kernel<Storage, false>, 1);
        }
    });
}

void add_backward(const add::Backward& a) {
    with_storage(a.grad_out.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        constexpr int vector = pack_elements<Storage>;
        const std::int64_t groups = std::max<std::int64_t>(1, divide_up(a.repeats, rows_per_group));
        const auto run = [&]<class Out>(Out* out) {
            const std::int64_t blocks = groups * divide_up(a.width, threads * vector);
            const Launch shape{.grid = static_cast<unsigned>(blocks), .block = threads};
            const auto* grad_out = pointer<Storage>(a.grad_out);
            if (in_packs(vector, a.width, {grad_out, out})) {
                launch(add_backward_kernel<Storage, Out, true>, shape, grad_out, out, a.repeats, a.width);
            } else {
                launch(add_backward_kernel<Storage, Out, false>, shape, grad_out, out, a.repeats, a.width);
            }
        };
        if (groups == 1) return run(pointer<Storage>(a.grad_y));
        auto* partial = scratch<float>(static_cast<std::size_t>(groups * a.width));
        run(partial);
        column_sums(partial, groups, a.width, a.width, pointer<Storage>(a.grad_y));
    });
}

}  // namespace pygpt::cuda
