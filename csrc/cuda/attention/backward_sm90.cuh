// What attention's backward kernels for Hopper share: a row's facts, rows on their way into shared memory, and
// gradients of the scores, where these stand transposed in the accumulators: keys down and rows across.
//
// A block of theirs is one warpgroup that loads and two that multiply.
#ifndef PYGPT_CUDA_ATTENTION_BACKWARD_SM90_CUH
#define PYGPT_CUDA_ATTENTION_BACKWARD_SM90_CUH

#include "cuda/attention/hopper.cuh"
#include "cuda/ptx/tma.cuh"

namespace pygpt::cuda {
namespace {

constexpr int multiplying_groups = 2;
constexpr int block_threads = (1 + multiplying_groups) * group_threads;
constexpr int loading_registers = 40;
constexpr int multiplying_registers = 232;

// What a block owns, rows or keys, and tiles of rows that it walks over: a group's products across.
template <class Storage_, int head_dim_>
struct HopperBackward {
    using Storage = Storage_;
    static constexpr int head_dim = head_dim_;
    static constexpr int own = multiplying_groups * group_rows;
    using OwnTile = SwizzledTile<Storage, own, head_dim>;
    using RowsTile = SwizzledTile<Storage, group_rows, head_dim>;
};

// What a row's gradients need; one that sees nothing has an infinite lse, and weights of zero.
struct alignas(16) Facts {
    float lse;  // in units of log 2
    float delta;
    int begin, end;  // the keys it sees, from its sequence's first
};

// What there is to make gradients of, as tensor copies can read it.
struct GradientInputs {
    TensorView q, k, v, grad_out;
    const Facts* facts;
};

template <class Storage>
struct GradientArguments {
    CUtensorMap q, grad_out, k, v;
    KeyRange keys;
    Scoring scoring;
    const Facts* facts;  // (B, H, T), and a tile more
    std::int64_t T, S;
    int H, D, group;  // group: query heads of a kv head
    float scale;
};

// Into a variable: the maps in it need alignment, which GCC 12 does not give to temporaries.
template <class Storage, class RowsTile, class KeysTile>
GradientArguments<Storage> gradient_arguments(const Problem& p, const GradientInputs& from) {
    return {map_or_any<RowsTile>(from.q, from.k),
            map_or_any<RowsTile>(from.grad_out, from.k),
            map_or_any<KeysTile>(from.k, from.q),
            map_or_any<KeysTile>(from.v, from.q),
            p.keys,
            Scoring(p),
            from.facts,
            p.T,
            p.S,
            static_cast<int>(p.H),
            static_cast<int>(p.D),
            static_cast<int>(p.H / p.G),
            static_cast<float>(p.scale)};
}

// Loads 64 rows of a query head to the n-th stage of the ring, the first one `query` of the tensor. `count`: how many
// of them there are; what is beyond waits at `landed` until it is made zeros, of rows that see nothing.
template <class Shared, class Storage>
__device__ void load_rows(const GradientArguments<Storage>& a, Shared& shared, unsigned n, int batch, int head,
                          int query, int count, unsigned& landed) {
    const int stage = shared.rows_ring.stage(n);
    const std::uint32_t full = shared.rows_ring.full(n);
    const std::uint32_t barrier = count < group_rows ? ptx::shared_address(&shared.landed) : full;
    auto &q = shared.q[stage], &grad_out = shared.grad_out[stage];
    shared.rows_ring.wait_empty(n);
    if (ptx::elect_lane()) {
        // Facts were read, and perhaps written, by ordinary instructions. Not noticed if removed: the emulated device
        // wants a fence before asynchronous reads alone.
        ptx::fence_async_shared();
        ptx::mbarrier_arrive_expect(barrier, 2 * q.size + static_cast<int>(sizeof(shared.facts[0])));
        q.load(a.q, query, head, batch, barrier);
        grad_out.load(a.grad_out, query, head, batch, barrier);
        const Facts* const facts = a.facts + (std::int64_t{batch} * a.H + head) * a.T + query;
        ptx::bulk_load(ptx::shared_address(shared.facts[stage]), facts, sizeof(shared.facts[0]), barrier);
    }
    if (count >= group_rows) return;
    const int there = count > 0 ? count : 0;
    ptx::mbarrier_wait(barrier, landed++ % 2);
    q.clear_rows(there, group_rows);
    grad_out.clear_rows(there, group_rows);
    for (int i = there + static_cast<int>(threadIdx.x); i < group_rows; i += warp_lanes) {
        shared.facts[stage][i] = {infinity, 0, INT_MAX, 0};
    }
    ptx::fence_async_shared();
    __syncwarp();  // all lanes have; not noticed if removed: to the emulated device a warp is one agent
    if (ptx::elect_lane()) ptx::mbarrier_arrive(full);
}

// Under a softcap: products q·k become tangents, those of grad_out·v less delta are multiplied by the slopes there.
template <int sums, class DeltaOf>
__device__ void cap_both(const Scoring& o, float (&x)[sums], float (&grad)[sums], DeltaOf delta_of) {
#pragma unroll
    for (int i = 0; i < sums; ++i) {
        x[i] = o.cap(x[i]);
        grad[i] = (grad[i] - delta_of(i)) * fmaf(-x[i], x[i], 1.0f);
    }
}

// What is done to the products of a tile's keys (down) and rows (across). Where there is no softcap and all keys are
// seen, those of q·k become weights while grad_out·v is on its way, and then with it gradients of the products, but for
// the scale.
template <int sums>
__device__ void weights_of_keys(const Scoring& o, const Facts* facts, float (&x)[sums]) {
    const int first_row = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int i = 0; i < sums; ++i) x[i] = o.weight(x[i], facts[first_row + i / 4 * 8 + i % 2].lse);
}
template <int sums>
__device__ void gradients_of_keys(const Facts* facts, const float (&weight)[sums], float (&grad)[sums]) {
    const int first_row = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int i = 0; i < sums; ++i) grad[i] = weight[i] * (grad[i] - facts[first_row + i / 4 * 8 + i % 2].delta);
}
// Else all in one, but step by step, which takes fewer registers. A hidden key's memory may hold anything: its weight
// is 0, and a weight of zero has no gradient, whatever the other factor is. `key` is the lane's first one, from its
// sequence's first.
template <int sums>
__device__ void finish_keys(const Scoring& o, const Facts* facts, int key, float (&x)[sums], float (&grad)[sums]) {
    facts += static_cast<int>(threadIdx.x) % 4 * 2;
    if (o.capped) cap_both(o, x, grad, [&](int i) { return facts[i / 4 * 8 + i % 2].delta; });
#pragma unroll
    for (int i = 0; i < sums; ++i) {
        const Facts& row = facts[i / 4 * 8 + i % 2];
        const int own = key + i / 2 % 2 * 8;
        if (own < row.begin || own >= row.end) x[i] = -infinity;
    }
#pragma unroll
    for (int i = 0; i < sums; ++i) {
        x[i] = o.weight(x[i], facts[i / 4 * 8 + i % 2].lse);
        const float difference = o.capped ? grad[i] : grad[i] - facts[i / 4 * 8 + i % 2].delta;
        grad[i] = x[i] == 0 ? 0 : x[i] * difference;
    }
}

}  // namespace
}  // namespace pygpt::cuda

#endif
