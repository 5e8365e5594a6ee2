// Sum of two tensors, the second repeated over leading dimensions. x (R, W), y (W,) -> out (R, W)
//
// Forward: a thread owns `vector` neighbouring elements of x, 16 bytes where the addresses allow it. Backward:
// grad_y[i] = Σ_r grad_out[r, i]; a thread owns one column and sums it in order of r, in groups of rows so that the
// error does not grow with their number; neighbouring threads read neighbouring columns. Both floors are reading and
// writing each element once.
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/number.cuh"

namespace pygpt::cuda {
namespace {

constexpr int threads = 256;
constexpr std::int64_t rows_per_sum = 64;

template <class Storage, int vector>
struct alignas(sizeof(Storage) * vector) Pack {
    Storage value[vector];
};

template <class Storage, int vector>
__global__ void add_forward_kernel(const Storage* x, const Storage* y, Storage* out, std::int64_t elements,
                                   std::int64_t width) {
    using Elements = Pack<Storage, vector>;
    const std::int64_t first = (std::int64_t{blockIdx.x} * threads + threadIdx.x) * vector;
    if (first >= elements) return;
    const auto a = *reinterpret_cast<const Elements*>(x + first);
    const auto b = *reinterpret_cast<const Elements*>(y + first % width);
    Elements sum;
    for (int i = 0; i < vector; ++i) sum.value[i] = from_float<Storage>(to_float(a.value[i]) + to_float(b.value[i]));
    *reinterpret_cast<Elements*>(out + first) = sum;
}

template <class Storage>
__global__ void add_backward_kernel(const Storage* grad_out, Storage* grad_y, std::int64_t repeats,
                                    std::int64_t width) {
    const std::int64_t column = std::int64_t{blockIdx.x} * threads + threadIdx.x;
    if (column >= width) return;
    float total = 0;
    for (std::int64_t first = 0; first < repeats; first += rows_per_sum) {
        const std::int64_t end = first + rows_per_sum < repeats ? first + rows_per_sum : repeats;
        float sum = 0;
        for (std::int64_t row = first; row < end; ++row) sum += to_float(grad_out[row * width + column]);
        total += sum;
    }
    grad_y[column] = from_float<Storage>(total);
}

}  // namespace

void add_forward(const add::Forward& a) {
    with_storage(a.x.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        constexpr int vector = 16 / sizeof(Storage);
        const auto* x = static_cast<const Storage*>(a.x.data);
        const auto* y = static_cast<const Storage*>(a.y.data);
        auto* out = static_cast<Storage*>(a.out.data);
        const std::int64_t elements = a.repeats * a.width;
        const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
        if (aligned(x) && aligned(y) && aligned(out) && a.width % vector == 0) {
            const auto blocks = static_cast<unsigned>(divide_up(elements, std::int64_t{threads} * vector));
            launch(add_forward_kernel<Storage, vector>, {blocks, threads}, x, y, out, elements, a.width);
        } else {
            const auto blocks = static_cast<unsigned>(divide_up(elements, threads));
            launch(add_forward_kernel<Storage, 1>, {blocks, threads}, x, y, out, elements, a.width);
        }
    });
}

void add_backward(const add::Backward& a) {
    with_storage(a.grad_out.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        const auto blocks = static_cast<unsigned>(divide_up(a.width, threads));
        launch(add_backward_kernel<Storage>, {blocks, threads}, static_cast<const Storage*>(a.grad_out.data),
               static_cast<Storage*>(a.grad_y.data), a.repeats, a.width);
    });
}

}  // namespace pygpt::cuda
