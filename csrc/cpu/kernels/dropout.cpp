// Dropout. x (B, W) -> out (B, W)
//
// Tasks are runs of elements of one row, cut at multiples of the 64 elements whose decisions come together. The mask is
// never stored. The floor is reading and writing each element once; about ten multiplications an element stand above
// it.
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/kernels/keep.h"
#include "cpu/kernels/rows.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t group = philox::elements_per_group;
constexpr std::int64_t elements_per_task = 128 * group;

template <class Storage>
void drop_run(const Storage* x, Storage* out, std::int64_t first, std::int64_t last, std::uint64_t key, double p) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    if (p == 1) {
        std::memset(static_cast<void*>(out + first), 0, static_cast<std::size_t>(last - first) * sizeof(Storage));
        return;
    }
    const std::uint32_t drop_below = philox::drop_below(p);
    const auto scale = static_cast<Number>(1 / (1 - p));
    alignas(64) Number keep[group];
    for (std::int64_t e = first; e < last; e += group) {
        const std::uint64_t block = philox::place(static_cast<std::uint64_t>(e)).block;
        const auto site = static_cast<std::uint32_t>(philox::Site::dropout);
        keep_group(key, {{philox::low(block), philox::high(block), 0, site}}, drop_below, scale, keep);
        each_vector<V>(std::min(group, last - e), [&](std::int64_t i, std::int64_t lanes) {
            (V::load(x + e + i, lanes) * V::load(keep + i)).store(out + e + i, lanes);
        });
    }
}

}  // namespace

template <>
void dropout_forward<this_isa>(const dropout::Forward& a) {
    with_storage(a.x.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        const auto seed = static_cast<std::uint64_t>(*static_cast<const std::int64_t*>(a.seed.data));
        const std::int64_t runs = (a.width + elements_per_task - 1) / elements_per_task;  // of a row
        parallel_for(a.rows * runs, [&](std::int64_t task) {
            const std::int64_t row = task / runs;
            const std::int64_t first = task % runs * elements_per_task;
            drop_run(row_of<Storage>(a.x, row, a.width), row_of<Storage>(a.out, row, a.width), first,
                     std::min(first + elements_per_task, a.width), seed + static_cast<std::uint64_t>(row), a.p);
        });
    });
}

}  // namespace pygpt::cpu
