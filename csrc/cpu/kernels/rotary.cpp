// Rotary positions. x (B, T, H, D), positions (T,) or (B, T), table (P, D) -> out (B, T, H, D)
//
//   out[i] = x[i] · cos - x[i + D/2] · sin        out[i + D/2] = x[i + D/2] · cos + x[i] · sin,   i < D/2
//
// and with the other sign of sin to turn back. Tasks are runs of tokens; a token's cosines and sines are read once for
// all of its heads. The floor is reading and writing each element once.
#include "cpu/kernels.h"
#include "cpu/kernels/rows.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t elements_per_task = 8192;

// A token's heads, (H, D); `angles` is its row of the table.
template <class Storage, class Angle>
void turn(const rotary::Forward& a, const Storage* x, const Angle* angles, Storage* out) {
    using V = Vec<compute_t<Storage>>;
    const std::int64_t heads = a.x.shape[2], head_dim = a.x.shape[3], half = head_dim / 2, stride = a.x.strides[2];
    each_vector<V>(half, [&](std::int64_t i, std::int64_t count) {
        const V cosine = V::load(angles + i, count), sine = V::load(angles + half + i, count);
        const V other_sine = V::zero() - sine;
        const V plus = a.back ? other_sine : sine, minus = a.back ? sine : other_sine;
        for (std::int64_t head = 0; head < heads; ++head) {
            const Storage* from = x + head * stride + i;
            Storage* to = out + head * head_dim + i;
            const V first = V::load(from, count), second = V::load(from + half, count);
            fma(first, cosine, second * minus).store(to, count);
            fma(second, cosine, first * plus).store(to + half, count);
        }
    });
}

}  // namespace

template <>
void rotary_forward<this_isa>(const rotary::Forward& a) {
    const auto with_types = [&](auto storage, auto angle) {
        using Storage = decltype(storage);
        using Angle = decltype(angle);
        const std::int64_t tokens = a.x.shape[0] * a.x.shape[1], time = a.x.shape[1];
        const std::int64_t head_dim = a.x.shape[3], width = a.x.shape[2] * head_dim;
        const std::int64_t tokens_per_task =
            std::max<std::int64_t>(1, elements_per_task / std::max<std::int64_t>(1, width));
        const auto* positions = static_cast<const std::int64_t*>(a.positions.data);
        const bool own = a.positions.dimensions == 2;  // each row has positions of its own
        parallel_for((tokens + tokens_per_task - 1) / tokens_per_task, [&](std::int64_t task) {
            const std::int64_t first = task * tokens_per_task;
            for (std::int64_t token = first; token < std::min(first + tokens_per_task, tokens); ++token) {
                const std::int64_t row = token / time, place = token % time;
                turn(a, static_cast<const Storage*>(a.x.data) + row * a.x.strides[0] + place * a.x.strides[1],
                     row_of<Angle>(a.table, positions[own ? token : place], head_dim),
                     row_of<Storage>(a.out, token, width));
            }
        });
    };
    with_storage(a.x.dtype, [&](auto storage) {
        if (a.table.dtype == DType::float32) return with_types(storage, float{});
        return with_types(storage, storage);
    });
}

}  // namespace pygpt::cpu
