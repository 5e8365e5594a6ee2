// Sum of two tensors, the second repeated over leading dimensions. x (R, W), y (W,) -> out (R, W)
//
// Forward: tasks are runs of elements of one part of x. Backward: grad_y[i] = Σ_r grad_out[r, i]; tasks are runs of
// columns, each column has one owner, who sums in order of r. Both floors are reading and writing each element once.
#include "cpu/kernels.h"
#include "cpu/kernels/rows.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t wanted_tasks = 64;
constexpr std::int64_t least_elements = 8192;  // of a task
constexpr std::int64_t most_elements = 65536;
constexpr std::int64_t least_columns = 256;  // of a task: long runs of a row stream faster, but all threads need tasks
constexpr std::int64_t most_columns = 4096;

}  // namespace

template <>
void add_forward<this_isa>(const add::Forward& a) {
    with_storage(a.x.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        using V = Vec<compute_t<Storage>>;
        const std::int64_t run = std::clamp(a.width * a.repeats / wanted_tasks, least_elements, most_elements);
        const std::int64_t runs = (a.width + run - 1) / run;  // of a part
        // Parts smaller than a run share a task, so that a narrow y costs no task a row.
        const std::int64_t parts = std::max<std::int64_t>(1, run / std::max<std::int64_t>(1, a.width));
        parallel_for((a.repeats + parts - 1) / parts * runs, [&](std::int64_t task) {
            const std::int64_t first = task % runs * run;
            const std::int64_t count = std::min(run, a.width - first);
            const Storage* y = static_cast<const Storage*>(a.y.data) + first;
            const std::int64_t first_part = task / runs * parts;
            for (std::int64_t part = first_part; part < std::min(first_part + parts, a.repeats); ++part) {
                const Storage* x = row_of<Storage>(a.x, part, a.width) + first;
                Storage* out = row_of<Storage>(a.out, part, a.width) + first;
                map_row<V>(
                    count,
                    [&](std::int64_t i, std::int64_t lanes) {
                        read_ahead(x + i);
                        return V::load(x + i, lanes) + V::load(y + i, lanes);
                    },
                    [&](std::int64_t i, std::int64_t lanes, V sum) {
                        write_ahead(out + i);
                        sum.store(out + i, lanes);
                    });
            }
        });
    });
}

template <>
void add_backward<this_isa>(const add::Backward& a) {
    with_storage(a.grad_out.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        using V = Vec<compute_t<Storage>>;
        const std::int64_t columns =
            std::clamp(a.width / wanted_tasks / least_columns * least_columns, least_columns, most_columns);
        parallel_for((a.width + columns - 1) / columns, [&](std::int64_t task) {
            const std::int64_t first = task * columns;
            const auto* grad_out = static_cast<const Storage*>(a.grad_out.data) + first;
            auto* grad_y = static_cast<Storage*>(a.grad_y.data) + first;
            each_vector<V>(std::min(columns, a.width - first), [&](std::int64_t i, std::int64_t lanes) {
                sum_of_rows<V>(a.repeats, [&](std::int64_t r) {
                    return V::load(grad_out + r * a.width + i, lanes);
                }).store(grad_y + i, lanes);
            });
        });
    });
}

}  // namespace pygpt::cpu
