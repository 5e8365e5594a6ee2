// The norm of many tensors together.
//
// Tasks are runs of elements of one tensor; each sums its squares in float32 (float64 for float64), and these sums are
// added in double in order of tensor and run. The floor is reading each element once.
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/kernels/rows.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t elements_per_task = 8192;

template <class Storage>
double sum_of_squares(const Storage* x, std::int64_t count) {
    using V = Vec<compute_t<Storage>>;
    return static_cast<double>(reduce_add(sum_row<V>(count, [&](std::int64_t i, std::int64_t lanes) {
        const V value = V::load(x + i, lanes);
        return value * value;
    })));
}

}  // namespace

template <>
void grad_norm_forward<this_isa>(const grad_norm::Forward& a) {
    double total = 0;
    for (const TensorView& tensor : a.tensors) {
        const std::int64_t size = elements(tensor);
        const std::int64_t runs = (size + elements_per_task - 1) / elements_per_task;
        const Scratch scratch(static_cast<std::size_t>(runs) * sizeof(double));
        auto* sums = static_cast<double*>(scratch.data());
        with_storage(tensor.dtype, [&](auto storage) {
            const auto* x = static_cast<const decltype(storage)*>(tensor.data);
            parallel_for(runs, [&](std::int64_t run) {
                const std::int64_t first = run * elements_per_task;
                sums[run] = sum_of_squares(x + first, std::min(elements_per_task, size - first));
            });
        });
        for (std::int64_t run = 0; run < runs; ++run) total += sums[run];
    }
    const double norm = std::sqrt(total);
    if (a.out.dtype == DType::float64) {
        *static_cast<double*>(a.out.data) = norm;
    } else {
        *static_cast<float*>(a.out.data) = static_cast<float>(norm);
    }
}

}  // namespace pygpt::cpu
