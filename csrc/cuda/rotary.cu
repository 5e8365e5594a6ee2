// Rotary positions. x (B, T, H, D), positions (T,) or (B, T), table (P, D) -> out (B, T, H, D)
//
//   out[i] = x[i] · cos - x[i + D/2] · sin        out[i + D/2] = x[i + D/2] · cos + x[i] · sin,   i < D/2
//
// and with the other sign of sin to turn back. A row of threads (threadIdx.y) has a token, and each of them a pack of
// 16 bytes of a head's first half together with its counterpart in the second, again and again until the token's heads
// are done. The floor is reading and writing each element once; a token's row of the table comes from L1 for all heads
// but the first. A position out of range gives NaN.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/pointer.h"
#include "cuda/tiles/pack.cuh"

namespace pygpt::cuda {
namespace {

constexpr int threads = 256;  // of a block

template <class Storage, class Angle>
struct Rotary {
    const Storage* x;
    std::int64_t batch_stride, time_stride, head_stride;  // of x, in elements
    const std::int64_t* positions;
    bool own_positions;  // each row of the batch has its own
    const Angle* table;
    std::int64_t table_rows;
    float sign;  // of sin
    Storage* out;
    std::int64_t tokens, time;
    int heads, half;  // half: D/2
};

template <class Storage, class Angle, bool aligned>
__global__ void __launch_bounds__(threads) rotary_forward_kernel(const Rotary<Storage, Angle> a) {
    constexpr int vector = aligned ? pack_elements<Storage> : 1;
    const std::int64_t token = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
    if (token >= a.tokens) return;
    const std::int64_t row = token / a.time, place = token % a.time;
    const std::int64_t position = a.positions[a.own_positions ? token : place];
    const bool exists = position >= 0 && position < a.table_rows;
    const Angle* const angles = a.table + (exists ? position : 0) * 2 * a.half;
    const Storage* const x = a.x + row * a.batch_stride + place * a.time_stride;
    Storage* const out = a.out + token * a.heads * 2 * a.half;
    const int packs = a.half / vector;  // of half a head
    for (int index = static_cast<int>(threadIdx.x); index < a.heads * packs; index += static_cast<int>(blockDim.x)) {
        const int head = index / packs, i = index % packs * vector;
        const Storage* const from = x + head * a.head_stride + i;
        Storage* const to = out + std::int64_t{head} * 2 * a.half + i;
        Floats<vector> first = {}, second = {}, cosine = {}, sine = {};
        if (exists) {
            first = load<aligned, vector>(from, 1);
            second = load<aligned, vector>(from + a.half, 1);
            cosine = load<aligned, vector>(angles + i, 1);
            sine = load<aligned, vector>(angles + a.half + i, 1);
        }
        Floats<vector> turned_first, turned_second;
#pragma unroll
        for (int j = 0; j < vector; ++j) {
            const float s = exists ? a.sign * sine.value[j] : nanf("");
            turned_first.value[j] = fmaf(first.value[j], cosine.value[j], __fmul_rn(second.value[j], -s));
            turned_second.value[j] = fmaf(second.value[j], cosine.value[j], __fmul_rn(first.value[j], s));
        }
        store<aligned>(to, turned_first, 1);
        store<aligned>(to + a.half, turned_second, 1);
    }
}

}  // namespace

void rotary_forward(const rotary::Forward& a) {
    const auto with_types = [&](auto storage, auto angle) {
        using Storage = decltype(storage);
        using Angle = decltype(angle);
        constexpr int vector = pack_elements<Storage>;
        const Rotary<Storage, Angle> arguments{.x = pointer<Storage>(a.x),
                                               .batch_stride = a.x.strides[0],
                                               .time_stride = a.x.strides[1],
                                               .head_stride = a.x.strides[2],
                                               .positions = pointer<std::int64_t>(a.positions),
                                               .own_positions = a.positions.dimensions == 2,
                                               .table = pointer<Angle>(a.table),
                                               .table_rows = a.table.shape[0],
                                               .sign = a.back ? -1.0f : 1.0f,
                                               .out = pointer<Storage>(a.out),
                                               .tokens = a.x.shape[0] * a.x.shape[1],
                                               .time = a.x.shape[1],
                                               .heads = static_cast<int>(a.x.shape[2]),
                                               .half = static_cast<int>(a.x.shape[3] / 2)};
        if (arguments.heads == 0 || arguments.half == 0) return;
        bool aligned = in_packs(vector, arguments.half, {a.x.data, a.table.data, a.out.data});
        for (int i = 0; i < 3; ++i) aligned &= a.x.strides[i] % vector == 0;
        const int work = arguments.heads * (arguments.half / (aligned ? vector : 1));  // of a token
        const int wide = std::min(threads, static_cast<int>(divide_up(work, 32)) * 32);
        const dim3 block(wide, threads / wide);
        const Launch shape{.grid = static_cast<unsigned>(divide_up(arguments.tokens, block.y)), .block = block};
        if (aligned) return launch(rotary_forward_kernel<Storage, Angle, true>, shape, arguments);
        launch(rotary_forward_kernel<Storage, Angle, false>, shape, arguments);
    };
    with_storage(a.x.dtype, [&](auto storage) {
        if (a.table.dtype == DType::float32) return with_types(storage, float{});
        with_types(storage, storage);
    });
}

}  // namespace pygpt::cuda
