// Attention backward on Hopper, by wgmma and tensor copies: the gradients of q, k and v. Contract: ops/attention.h.
//
// The weights are computed again from the scores and lse, tile by tile. With o = grad_out, row by row:
//
//     p = 2^(scores - lse);  delta = o · out - grad_lse;  s = p · (o · vᵀ - delta)      the gradient of the scores
//     grad_v += pᵀ · o;  grad_k += scale · sᵀ · q;  grad_q += scale · s · k              (s times the softcap's slope)
//
// Three kernels, none of which adds to what another block has written. Facts: a warp makes what the others need of a
// row. Keys: a block owns a key tile and sums grad_k and grad_v over the rows that see it, query heads of the kv head
// included, in order. Scores stand transposed in the accumulators, keys down and rows across, which so are operands of
// the sums: nothing of the tile goes through shared memory. Queries: a block owns a row tile and sums grad_q over the
// key tiles, in order. One warp of a block loads, two warpgroups multiply (hopper.cuh); the sums of a tile are under
// way while the products of the next begin.
//
// Scores are computed twice, 14 · T · S · D operations a head instead of the floor of 10: for that no block waits for
// another, and gradients never travel in float32.
//
// Hidden memory may be anything, and 0 · NaN is NaN: where it would be an operand of a sum (rows past a sequence's end
// in the keys' kernel, k in the queries') the loading warp makes it zeros.
#include <cstdlib>

#include "cuda/attention/hopper.cuh"
#include "cuda/ptx/load.cuh"
#include "cuda/ptx/stmatrix.cuh"
#include "cuda/ptx/turn.cuh"

namespace pygpt::cuda {
namespace {

constexpr float infinity = __builtin_huge_valf();

using BackwardHeadDims = std::integer_sequence<int, 64, 96, 128>;

constexpr int multiplying_groups = 2;
constexpr int block_threads = (1 + multiplying_groups) * group_threads;
constexpr int loading_registers = 40;
constexpr int multiplying_registers = 232;
constexpr int fused_loading_registers = 40, fused_multiplying_registers = 232;

// Sizes by the registers of a group: products of a tile, sums, and a packed operand or two.
template <class Storage_, int head_dim_>
struct HopperBackward {
    using Storage = Storage_;
    static constexpr int head_dim = head_dim_;
    static constexpr int own = multiplying_groups * group_rows;
    static constexpr int rows = 64;                         // beside two sums
    static constexpr int keys = head_dim <= 64 ? 128 : 96;  // beside one
    static constexpr int stages = 2;
    using OwnTile = SwizzledTile<Storage, own, head_dim>;
    using RowsTile = SwizzledTile<Storage, rows, head_dim>;
    using KeysTile = SwizzledTile<Storage, keys, head_dim>;
};

// ---- facts ----

// What a row's gradients need; one that sees nothing has an infinite lse, and weights of zero.
struct alignas(16) Facts {
    float lse;  // in units of log 2
    float delta;
    int begin, end;  // the keys it sees, from its sequence's first
};

constexpr int facts_threads = 256;
constexpr int facts_lanes = 8;     // of a row
constexpr int facts_unrolled = 4;  // rows of a thread
constexpr int facts_rows = facts_threads / facts_lanes * facts_unrolled;

template <class Storage>
struct FactsArguments {
    KeyRange keys;
    Vectors<const Storage> grad_out, out;
    const float *lse, *grad_lse;  // grad_lse may be null
    Facts* facts;                 // (B, H, T)
    std::int64_t T;
    unsigned H;
    int D;
};

// The document that a query is in: the last that begins at or before it.
__device__ inline Sequence sequence_of(const KeyRange& keys, std::int64_t batch, std::int64_t query) {
    if (!keys.cu_seqlens) return keys.sequence(batch);
    std::int64_t low = 0, high = keys.documents;
    while (high - low > 1) {
        const std::int64_t middle = (low + high) / 2;
        if (keys.cu_seqlens[middle] <= query)
            low = middle;
        else
            high = middle;
    }
    return keys.sequence(low);
}

// 16 bytes of a vector, with zeros for what is beyond D.
template <class Storage>
__device__ uint4 chunk_of(const Vectors<const Storage>& tensor, const Storage* vector, int column, int D) {
    if (tensor.in_chunks) return ptx::load_once(vector + column);
    alignas(16) Storage chunk[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) chunk[i] = column + i < D ? vector[column + i] : from_float<Storage>(0);
    return *reinterpret_cast<const uint4*>(chunk);
}

// A block's rows are queries of one head; blocks of a query's heads follow one another, as they lie in memory.
template <class Storage>
__global__ void __launch_bounds__(facts_threads)
    attention_facts_sm90(const __grid_constant__ FactsArguments<Storage> a) {
    const unsigned tiles = static_cast<unsigned>((a.T + facts_rows - 1) / facts_rows);
    const unsigned head = blockIdx.x % a.H, tile = blockIdx.x / a.H % tiles, batch = blockIdx.x / a.H / tiles;
    const int lane = static_cast<int>(threadIdx.x) % facts_lanes;
    const std::int64_t first = std::int64_t{tile} * facts_rows + threadIdx.x / facts_lanes;
    float delta[facts_unrolled] = {};
    for (int column = lane * 8; column < a.D; column += facts_lanes * 8) {
        uint4 grad[facts_unrolled] = {}, out[facts_unrolled] = {};
#pragma unroll
        for (int i = 0; i < facts_unrolled; ++i) {
            const std::int64_t query = first + i * (facts_rows / facts_unrolled);
            if (query >= a.T) continue;
            grad[i] = chunk_of(a.grad_out, a.grad_out.at(batch, query, head), column, a.D);
            out[i] = chunk_of(a.out, a.out.at(batch, query, head), column, a.D);
        }
#pragma unroll
        for (int i = 0; i < facts_unrolled; ++i) {
            const auto* const left = reinterpret_cast<const Storage*>(&grad[i]);
            const auto* const right = reinterpret_cast<const Storage*>(&out[i]);
#pragma unroll
            for (int e = 0; e < 8; ++e) delta[i] = fmaf(to_float(left[e]), to_float(right[e]), delta[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < facts_unrolled; ++i) {
#pragma unroll
        for (int step = 1; step < facts_lanes; step *= 2) delta[i] += __shfl_xor_sync(all_lanes, delta[i], step);
    }
    if (lane >= facts_unrolled) return;
    const std::int64_t query = first + lane * (facts_rows / facts_unrolled);  // one of the rows for each of the lanes
    if (query >= a.T) return;
    float own = delta[0];
#pragma unroll
    for (int i = 1; i < facts_unrolled; ++i) own = lane == i ? delta[i] : own;
    constexpr float log2_e = 1.442695040888963407f;
    const std::int64_t row = (std::int64_t{batch} * a.H + head) * a.T + query;
    const float lse = a.lse[row];
    const Sequence sequence = sequence_of(a.keys, batch, query);
    const Keys keys = keys_of(a.keys, sequence, query);
    a.facts[row] = {lse == -infinity ? infinity : lse * log2_e, a.grad_lse ? own - a.grad_lse[row] : own, keys.begin,
                    keys.end};
}

template <class Tile>
struct TypeOf {
    using Type = Tile;
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

// ---- keys ----

template <class Storage>
struct KeyGradients : GradientArguments<Storage> {
    Schedule<Over::keys> schedule;
    Vectors<Storage> grad_k, grad_v;
};

template <class T>
struct KeysOwnShared {
    typename T::OwnTile k, v;
    typename T::RowsTile q[T::stages], grad_out[T::stages];
    Facts facts[T::stages][T::rows];
    Ring<T::stages> rows_ring;
    Ring<1> own_ring;  // of k, v and the item
    std::uint64_t landed;
    unsigned item;
};

// A tile of keys: of each of the query heads `tiles` row tiles from the first on see it.
struct KeysItem {
    Sequence sequence;
    int kv_head, base;
    int first_tile, tiles;

    template <class T, class Arguments>
    __device__ static KeysItem make(const Arguments& a, unsigned index) {
        const Work work = a.schedule.work(index);
        KeysItem item{};
        if (work.none) return item;
        item.sequence = a.keys.sequence(work.sequence);
        item.kv_head = work.kv_head;
        item.base = static_cast<int>(work.tile) * T::own;
        const std::int64_t first_key = item.sequence.keys.begin + item.base;
        const Span queries = a.keys.queries(item.sequence, {first_key, first_key + T::own});
        if (queries.empty()) return item;
        item.first_tile = static_cast<int>((queries.begin - item.sequence.queries.begin) / T::rows);
        item.tiles = static_cast<int>(divide_up(queries.end - item.sequence.queries.begin, std::int64_t{T::rows})) -
                     item.first_tile;
        return item;
    }
};

template <class T>
__device__ void load(const KeyGradients<typename T::Storage>& a, KeysOwnShared<T>& shared) {
    unsigned items = 0, loaded = 0, cut = 0;  // so far
    for (unsigned index = blockIdx.x;; index = a.schedule.next()) {
        shared.own_ring.wait_empty(items);
        const bool more = index < a.schedule.items;
        KeysItem item{};
        if (more) item = KeysItem::make<T>(a, index);
        const int batch = static_cast<int>(item.sequence.batch);
        const int key = static_cast<int>(item.sequence.keys.begin) + item.base;
        if (ptx::elect_lane()) {
            shared.item = index;
            const std::uint32_t full = shared.own_ring.full(0);
            if (item.tiles > 0) {
                ptx::mbarrier_arrive_expect(full, 2 * T::OwnTile::size);
                shared.k.load(a.k, key, item.kv_head, batch, full);
                shared.v.load(a.v, key, item.kv_head, batch, full);
            } else {
                ptx::mbarrier_arrive(full);
            }
        }
        if (!more) return;
        ++items;
        const int first_query = static_cast<int>(item.sequence.queries.begin);
        const int queries = static_cast<int>(item.sequence.queries.size());
        const int first_head = item.kv_head * a.group;
        int head = first_head, row = item.first_tile * T::rows;
#pragma unroll 1
        for (const unsigned end = loaded + item.tiles * a.group; loaded < end; ++loaded) {
            const int stage = Ring<T::stages>::stage(loaded);
            const int count = queries - row;  // of rows that there are, if the tile is not whole
            const std::uint32_t full = shared.rows_ring.full(loaded);
            const std::uint32_t barrier = count < T::rows ? ptx::shared_address(&shared.landed) : full;
            shared.rows_ring.wait_empty(loaded);
            if (ptx::elect_lane()) {
                ptx::fence_async_shared();  // facts were read, and perhaps written, by ordinary instructions
                ptx::mbarrier_arrive_expect(barrier, 2 * T::RowsTile::size + static_cast<int>(sizeof(shared.facts[0])));
                shared.q[stage].load(a.q, first_query + row, head, batch, barrier);
                shared.grad_out[stage].load(a.grad_out, first_query + row, head, batch, barrier);
                const Facts* const facts = a.facts + (std::int64_t{batch} * a.H + head) * a.T + first_query + row;
                ptx::bulk_load(ptx::shared_address(shared.facts[stage]), facts, sizeof(shared.facts[0]), barrier);
            }
            if (count < T::rows) {
                ptx::mbarrier_wait(barrier, cut++ % 2);
                shared.q[stage].clear_rows(count, T::rows);
                shared.grad_out[stage].clear_rows(count, T::rows);
                for (int i = count + static_cast<int>(threadIdx.x); i < T::rows; i += warp_lanes) {
                    shared.facts[stage][i] = {infinity, 0, INT_MAX, 0};
                }
                ptx::fence_async_shared();
                __syncwarp();
                if (ptx::elect_lane()) ptx::mbarrier_arrive(full);
            }
            row += T::rows;
            if (row >= (item.first_tile + item.tiles) * T::rows) row = item.first_tile * T::rows, ++head;
        }
    }
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

template <class T>
__device__ void multiply(const KeyGradients<typename T::Storage>& a, KeysOwnShared<T>& shared, int group) {
    using Storage = typename T::Storage;
    using RowsTile = typename T::RowsTile;
    const std::uint32_t rows_before = group * group_rows * T::OwnTile::row_bytes;
    const std::uint32_t k = shared.k.address() + rows_before, v = shared.v.address() + rows_before;

    unsigned n = 0;  // row tiles so far
    for (unsigned items = 0;; ++items) {
        shared.own_ring.wait_full(items);
        if (shared.item >= a.schedule.items) break;
        int first_key;
        unsigned tiles;
        {
            const KeysItem item = KeysItem::make<T>(a, shared.item);
            tiles = item.tiles * a.group;
            first_key = item.base + group * group_rows;
        }

        float grad_k[T::head_dim / 2], grad_v[T::head_dim / 2];
#pragma unroll
        for (int i = 0; i < T::head_dim / 2; ++i) grad_k[i] = grad_v[i] = 0;
        const auto pin_sums = [&] {
            ptx::pin(grad_k);
            ptx::pin(grad_v);
        };
#pragma unroll 1
        for (const unsigned end = n + tiles; n < end; ++n) {
            const int stage = Ring<T::stages>::stage(n);
            float x[T::rows / 2], grad[T::rows / 2];  // keys down, rows across
            Weights<T::rows / 16> weights, gradients;
            shared.rows_ring.wait_full(n);
            ptx::wgmma_fence();
            start_rows<typename T::OwnTile, RowsTile>(x, k, shared.q[stage].address());
            ptx::wgmma_commit();
            start_rows<typename T::OwnTile, RowsTile>(grad, v, shared.grad_out[stage].address());
            ptx::wgmma_commit();
            ptx::wgmma_wait<1>();
            ptx::pin(x);
            const Facts* const facts = shared.facts[stage];
            const bool hides = facts[T::rows - 1].begin > first_key || facts[0].end < first_key + group_rows;
            const bool plain = !hides && !a.scoring.capped;
            if (plain) weights_of_keys(a.scoring, facts, x);
            ptx::wgmma_wait<0>();
            ptx::pin(grad);
            if (plain) {
                gradients_of_keys(facts, x, grad);
            } else {
                finish_keys(a.scoring, facts, first_key + row_of(0), x, grad);
            }
            // One after the other, as products and operands together would take more registers than there are.
            pack<Storage>(gradients, grad);
            pin(gradients);
            pack<Storage>(weights, x);
            pin(weights);
            pin_sums();
            ptx::wgmma_fence();
            start_weights<RowsTile>(grad_v, weights, shared.grad_out[stage].address());
            start_weights<RowsTile>(grad_k, gradients, shared.q[stage].address());
            ptx::wgmma_commit();
            ptx::wgmma_wait<0>();
            pin_sums();
            pin(weights);
            pin(gradients);
            shared.rows_ring.release(n);
        }
        const KeysItem item = KeysItem::make<T>(a, shared.item);  // again: nothing of it is kept meanwhile
        shared.own_ring.release(items);
        // Keys past a row's length have gradients too, of zero.
        const std::int64_t end = a.keys.cu_seqlens ? item.sequence.keys.end : a.S;
        const auto store = [&](const auto& sums, const Vectors<Storage>& tensor, float factor) {
            store_sums<Storage>(
                sums, tensor.in_chunks, a.D,
                [&](int half) {
                    const std::int64_t key = item.sequence.keys.begin + item.base + group * group_rows + row_of(half);
                    return key < end ? tensor.at(item.sequence.batch, key, item.kv_head) : nullptr;
                },
                [&](int) { return factor; });
        };
        store(grad_k, a.grad_k, a.scale);
        store(grad_v, a.grad_v, 1);
    }
}

template <class T>
__global__ void __launch_bounds__(block_threads, 1)
    attention_backward_keys_sm90(const __grid_constant__ KeyGradients<typename T::Storage> a) {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    auto& shared = *reinterpret_cast<KeysOwnShared<T>*>(shared_bytes);
    if (threadIdx.x == 0) {
        shared.rows_ring.init(multiplying_groups * 4);
        shared.own_ring.init(multiplying_groups * 4);
        ptx::mbarrier_init(ptx::shared_address(&shared.landed), 1);
        ptx::mbarrier_init_fence();
    }
    __syncthreads();
    const int group = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / group_threads, 0);
    if (group == 0) {
        ptx::setmaxnreg_dec<loading_registers>();
        if (threadIdx.x < warp_lanes) load<T>(a, shared);
    } else {
        ptx::setmaxnreg_inc<multiplying_registers>();
        multiply<T>(a, shared, group - 1);
    }
}

// ---- queries ----

template <class Storage>
struct QueryGradient : GradientArguments<Storage> {
    Schedule<Over::rows> schedule;
    Vectors<Storage> grad_q;
};

template <class T>
struct RowsOwnShared {
    typename T::OwnTile q, grad_out;
    typename T::KeysTile k[T::stages], v[T::stages];
    Ring<T::stages> k_ring, v_ring;
    Ring<1> own_ring;  // of q, grad_out and the item
    SeenKeys seen[multiplying_groups];
    std::uint64_t landed;
    unsigned item;
};

template <class T>
__device__ void load(const QueryGradient<typename T::Storage>& a, RowsOwnShared<T>& shared) {
    unsigned items = 0, tiles = 0, hidden = 0;  // so far
    for (unsigned index = blockIdx.x;; index = a.schedule.next()) {
        shared.own_ring.wait_empty(items);
        const bool more = index < a.schedule.items;
        RowsLoads item{};
        if (more) item = RowsLoads(RowsItem::make<T::own, T::keys>(a, index), a);
        if (ptx::elect_lane()) {
            shared.item = index;
            const std::uint32_t full = shared.own_ring.full(0);
            if (item.tiles > 0) {
                ptx::mbarrier_arrive_expect(full, 2 * T::OwnTile::size);
                shared.q.load(a.q, item.query, item.head, item.batch, full);
                shared.grad_out.load(a.grad_out, item.query, item.head, item.batch, full);
            } else {
                ptx::mbarrier_arrive(full);
            }
        }
        if (!more) return;
        ++items;
        const int kv_head = item.head / a.group;
        int key = item.key;
#pragma unroll 1
        for (const unsigned end = tiles + item.tiles; tiles < end; ++tiles, key += T::keys) {
            load_visible(shared.k[tiles % T::stages], shared.k_ring, tiles, a.k, item, key, kv_head, shared.landed,
                         hidden);
            load_all(shared.v[tiles % T::stages], shared.v_ring, tiles, a.v, item, key, kv_head);
        }
    }
}

// As those of keys: rows stand down here, and keys across.
template <int sums>
__device__ void weights_of_rows(const Scoring& o, const float (&lse)[2], float (&x)[sums]) {
#pragma unroll
    for (int i = 0; i < sums; ++i) x[i] = o.weight(x[i], lse[i / 2 % 2]);
}
template <int sums>
__device__ void gradients_of_rows(const float (&delta)[2], const float (&weight)[sums], float (&grad)[sums]) {
#pragma unroll
    for (int i = 0; i < sums; ++i) grad[i] = weight[i] * (grad[i] - delta[i / 2 % 2]);
}
template <int sums>
__device__ void finish_rows(const Scoring& o, const SeenKeys& seen, int first, const float (&lse)[2],
                            const float (&delta)[2], float (&x)[sums], float (&grad)[sums]) {
    if (o.capped) cap_both(o, x, grad, [&](int i) { return delta[i / 2 % 2]; });
    seen.hide(x, first);
    weights_of_rows(o, lse, x);
#pragma unroll
    for (int i = 0; i < sums; ++i) {
        const float difference = o.capped ? grad[i] : grad[i] - delta[i / 2 % 2];
        grad[i] = x[i] == 0 ? 0 : x[i] * difference;
    }
}

template <class T>
__device__ void multiply(const QueryGradient<typename T::Storage>& a, RowsOwnShared<T>& shared, int group) {
    using Storage = typename T::Storage;
    using KeysTile = typename T::KeysTile;
    const std::uint32_t rows_before = group * group_rows * T::OwnTile::row_bytes;
    const std::uint32_t q = shared.q.address() + rows_before, grad_out = shared.grad_out.address() + rows_before;
    SeenKeys& seen = shared.seen[group];

    unsigned n = 0;  // key tiles so far
    for (unsigned items = 0;; ++items) {
        shared.own_ring.wait_full(items);
        std::uint32_t index[1] = {shared.item};
        if (index[0] >= a.schedule.items) break;
        int tiles, whole = 0, whole_end = 0;  // all rows see all keys of the tiles [whole, whole_end)
        float lse[2] = {infinity, infinity}, delta[2] = {0, 0};
        {
            const RowsItem item = RowsItem::make<T::own, T::keys>(a, index[0]);
            const GroupRows own(a.keys, item.all_rows, item.first_row + group * group_rows);
            own.put(seen, a.keys, item.sequence, item.base);
            tiles = item.tiles;
            if (!own.any.empty()) {
                whole = (own.all.begin - item.base + T::keys - 1) / T::keys;
                whole_end = (own.all.end - item.base) / T::keys;
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = row_of(half);
                if (row >= own.rows.count) continue;
                const Facts& facts = a.facts[(item.sequence.batch * a.H + item.head) * a.T + own.rows.query_of(row)];
                lse[half] = facts.lse;
                delta[half] = facts.delta;
            }
        }

        float grad_q[T::head_dim / 2];
        Weights<T::keys / 16> gradients;
#pragma unroll
        for (float& sum : grad_q) sum = 0;
#pragma unroll 1
        for (int tile = 0; tile < tiles; ++tile, ++n) {
            const int stage = Ring<T::stages>::stage(n);
            float x[T::keys / 2], grad[T::keys / 2];  // rows down, keys across
            shared.k_ring.wait_full(n);
            ptx::wgmma_fence();
            start_rows<typename T::OwnTile, KeysTile>(x, q, shared.k[stage].address());
            ptx::wgmma_commit();
            shared.v_ring.wait_full(n);
            ptx::wgmma_fence();
            start_rows<typename T::OwnTile, KeysTile>(grad, grad_out, shared.v[stage].address());
            ptx::wgmma_commit();
            ptx::wgmma_wait<1>();  // q·k, and the sum of the tile before
            ptx::pin(x);
            ptx::pin(grad_q);
            pin(gradients);
            if (tile > 0) shared.k_ring.release(n - 1);
            const bool hides = tile < whole || tile >= whole_end;
            const bool plain = !hides && !a.scoring.capped;
            if (plain) weights_of_rows(a.scoring, lse, x);
            ptx::wgmma_wait<0>();
            ptx::pin(grad);
            shared.v_ring.release(n);
            if (plain) {
                gradients_of_rows(delta, x, grad);
            } else {
                finish_rows(a.scoring, seen, tile * T::keys, lse, delta, x, grad);
            }
            pack<Storage>(gradients, grad);
            ptx::pin(grad_q);
            pin(gradients);
            ptx::wgmma_fence();
            start_weights<KeysTile>(grad_q, gradients, shared.k[stage].address());
            ptx::wgmma_commit();
        }
        ptx::wgmma_wait<0>();
        ptx::pin(grad_q);
        if (tiles > 0) shared.k_ring.release(n - 1);
        shared.own_ring.release(items);

        ptx::pin(index);  // what is made of it again is not kept since
        const RowsItem item = RowsItem::make<T::own, T::keys>(a, index[0]);
        const RowTile rows(item.all_rows, item.first_row + group * group_rows, group_rows);
        store_sums<Storage>(
            grad_q, a.grad_q.in_chunks, a.D,
            [&](int half) {
                const int row = row_of(half);
                return row < rows.count ? a.grad_q.at(item.sequence.batch, rows.query_of(row), item.head) : nullptr;
            },
            [&](int) { return a.scale; });
    }
}

template <class T>
__global__ void __launch_bounds__(block_threads, 1)
    attention_backward_queries_sm90(const __grid_constant__ QueryGradient<typename T::Storage> a) {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    auto& shared = *reinterpret_cast<RowsOwnShared<T>*>(shared_bytes);
    if (threadIdx.x == 0) {
        shared.k_ring.init(multiplying_groups * 4);
        shared.v_ring.init(multiplying_groups * 4);
        shared.own_ring.init(multiplying_groups * 4);
        ptx::mbarrier_init(ptx::shared_address(&shared.landed), 1);
        ptx::mbarrier_init_fence();
    }
    __syncthreads();
    const int group = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / group_threads, 0);
    if (group == 0) {
        ptx::setmaxnreg_dec<loading_registers>();
        if (threadIdx.x < warp_lanes) load<T>(a, shared);
    } else {
        ptx::setmaxnreg_inc<multiplying_registers>();
        multiply<T>(a, shared, group - 1);
    }
}

// ---- all at once ----

template <class Storage_, int head_dim_>
struct HopperFused {
    using Storage = Storage_;
    static constexpr int head_dim = head_dim_;
    static constexpr int own = multiplying_groups * group_rows;
    // Of a tile's grad_q each group makes a part: half of the rows, or of the columns.
    static constexpr int parts = multiplying_groups;
    static constexpr int halves = head_dim <= 64 ? 2 : 1;  // of a tile's rows
    static constexpr int rows = halves * group_rows;
    static constexpr int stages = head_dim <= 64 ? 4 : 2;
    static constexpr int buffers = head_dim <= 64 ? 1 : 2;  // of grad_q
    static constexpr bool delays = head_dim <= 64;  // grad_q of a tile until the next, for which there are registers
    static constexpr int part_columns = head_dim / (parts / halves);
    static constexpr int part_sums = part_columns / 2;
    static constexpr int part_floats = group_rows * part_columns;
    using OwnTile = SwizzledTile<Storage, own, head_dim>;
    using RowsTile = SwizzledTile<Storage, group_rows, head_dim>;
    using GradientsTile = SwizzledTile<Storage, own, group_rows>;  // of scores, keys down
};

template <class Storage>
struct FusedArguments {
    CUtensorMap q, grad_out, k, v;
    KeyRange keys;
    Schedule<Over::keys> schedule;
    Scoring scoring;
    const Facts* facts;  // (B, H, T), and a tile more
    Vectors<Storage> grad_k, grad_v;
    float* grad_q;         // (B, H, slots, parts, sums / 4, thread, 4)
    std::uint32_t* turns;  // (B, H, slots, parts): 1 + the last key tile that added
    std::int64_t S;
    int H, D, group, slots;
    float scale;
    int tried;
};

// A tile of keys, as all warps of the block read it.
struct FusedItem {
    bool more;
    int batch, kv_head, tile;
    int key, base;          // of the tile's first key: in the tensor, and in its sequence
    int key_end;            // in the tensor
    int query, queries;     // of the sequence
    int first_tile, tiles;  // row tiles that see the keys, of each query head
    int after, after_end;   // those that see the next key tile
    int seen, seen_end;     // of the tile's keys by any query
    int slot;               // of the sequence's first row tile

    template <class T, class Arguments>
    __device__ static FusedItem make(const Arguments& a, unsigned index) {
        FusedItem item{};
        if (index >= a.schedule.items) return item;
        item.more = true;
        const Work work = a.tried == 3 ? a.schedule.template work<false>(index) : a.schedule.template work<true>(index);
        if (work.none) return item;
        const Sequence sequence = a.keys.sequence(work.sequence);
        item.batch = static_cast<int>(sequence.batch);
        item.kv_head = work.kv_head;
        item.tile = static_cast<int>(work.tile);
        item.base = item.tile * T::own;
        item.key = static_cast<int>(sequence.keys.begin) + item.base;
        item.key_end = static_cast<int>(a.keys.cu_seqlens ? sequence.keys.end : a.S);
        item.query = static_cast<int>(sequence.queries.begin);
        item.queries = static_cast<int>(sequence.queries.size());
        if (a.keys.cu_seqlens) item.slot = item.query / T::rows + static_cast<int>(work.sequence);
        const auto tiles_of = [&](std::int64_t first_key, int& begin, int& end) {
            const Span queries = a.keys.queries(sequence, {first_key, first_key + T::own});
            if (queries.empty()) return;
            begin = static_cast<int>(queries.begin - sequence.queries.begin) / T::rows;
            end = (static_cast<int>(queries.end - sequence.queries.begin) + T::rows - 1) / T::rows;
        };
        int end = 0;
        tiles_of(item.key, item.first_tile, end);
        item.tiles = end - item.first_tile;
        tiles_of(item.key + T::own, item.after, item.after_end);
        if (item.tiles == 0) return item;
        item.seen = keys_of(a.keys, sequence, sequence.queries.begin).begin - item.base;
        item.seen_end = keys_of(a.keys, sequence, sequence.queries.end - 1).end - item.base;
        return item;
    }
};

template <class T>
struct FusedShared {
    typename T::OwnTile k, v;
    typename T::RowsTile q[T::stages], grad_out[T::stages];
    typename T::GradientsTile gradients[2][T::halves];
    alignas(128) float grad_q[T::parts][T::buffers][T::part_floats];
    Facts facts[T::stages][group_rows];
    Ring<T::stages> rows_ring;
    Ring<1> own_ring;  // of k, v and the item
    Ring<T::buffers> grad_q_ring[T::parts];
    Ring<2> gradients_ring;
    std::uint64_t landed;
    FusedItem item;
};

template <class T>
__device__ void load(const FusedArguments<typename T::Storage>& a, FusedShared<T>& shared) {
    unsigned loaded = 0, cut = 0;  // so far
    for (unsigned items = 0;; ++items) {
        const FusedItem item = FusedItem::make<T>(a, a.schedule.next() - a.schedule.blocks);
        shared.own_ring.wait_empty(items);
        const std::uint32_t full = shared.own_ring.full(0);
        const std::uint32_t landed = ptx::shared_address(&shared.landed);
        const bool hides = item.tiles > 0 && (item.seen > 0 || item.seen_end < T::own);
        if (hides) {
            if (ptx::elect_lane()) {
                ptx::mbarrier_arrive_expect(landed, 2 * T::OwnTile::size);
                shared.k.load(a.k, item.key, item.kv_head, item.batch, landed);
                shared.v.load(a.v, item.key, item.kv_head, item.batch, landed);
            }
            ptx::mbarrier_wait(landed, cut++ % 2);
            for (auto* const tile : {&shared.k, &shared.v}) {
                tile->clear_rows(0, item.seen < T::own ? item.seen : T::own);
                tile->clear_rows(item.seen_end > 0 ? item.seen_end : 0, T::own);
            }
            ptx::fence_async_shared();
            __syncwarp();
        }
        if (ptx::elect_lane()) {
            shared.item = item;
            if (item.tiles > 0 && !hides) {
                ptx::mbarrier_arrive_expect(full, 2 * T::OwnTile::size);
                shared.k.load(a.k, item.key, item.kv_head, item.batch, full);
                shared.v.load(a.v, item.key, item.kv_head, item.batch, full);
            } else {
                ptx::mbarrier_arrive(full);
            }
        }
        if (!item.more) return;
        const int first_head = item.kv_head * a.group;
        int head = first_head, row = item.first_tile * T::rows;
#pragma unroll 1
        for (const unsigned end = loaded + item.tiles * a.group * T::halves; loaded < end; ++loaded) {
            const int stage = Ring<T::stages>::stage(loaded);
            const int count = item.queries - row;  // of rows that there are, if the tile is not whole
            const std::uint32_t barrier = count < group_rows ? landed : shared.rows_ring.full(loaded);
            shared.rows_ring.wait_empty(loaded);
            if (ptx::elect_lane()) {
                ptx::fence_async_shared();  // facts were read, and perhaps written, by ordinary instructions
                ptx::mbarrier_arrive_expect(barrier, 2 * T::RowsTile::size + static_cast<int>(sizeof(shared.facts[0])));
                shared.q[stage].load(a.q, item.query + row, head, item.batch, barrier);
                shared.grad_out[stage].load(a.grad_out, item.query + row, head, item.batch, barrier);
                const Facts* const facts =
                    a.facts + (std::int64_t{item.batch} * a.H + head) * a.keys.q_time + item.query + row;
                ptx::bulk_load(ptx::shared_address(shared.facts[stage]), facts, sizeof(shared.facts[0]), barrier);
            }
            if (count < group_rows) {
                const int there = count > 0 ? count : 0;
                ptx::mbarrier_wait(barrier, cut++ % 2);
                shared.q[stage].clear_rows(there, group_rows);
                shared.grad_out[stage].clear_rows(there, group_rows);
                for (int i = there + static_cast<int>(threadIdx.x); i < group_rows; i += warp_lanes) {
                    shared.facts[stage][i] = {infinity, 0, INT_MAX, 0};
                }
                ptx::fence_async_shared();
                __syncwarp();
                if (ptx::elect_lane()) ptx::mbarrier_arrive(shared.rows_ring.full(loaded));
            }
            row += group_rows;
            if (row >= (item.first_tile + item.tiles) * T::rows) row = item.first_tile * T::rows, ++head;
        }
    }
}

// Adds a group's parts of grad_q to what the key tiles after this one have added.
template <class T>
__device__ void add(const FusedArguments<typename T::Storage>& a, FusedShared<T>& shared, int part) {
    const auto& ring = shared.grad_q_ring[part];
    constexpr int bytes = static_cast<int>(sizeof(shared.grad_q[0][0]));
    unsigned n = 0;  // row tiles so far
    for (unsigned items = 0;; ++items) {
        shared.own_ring.wait_full(items);
        const FusedItem item = shared.item;
        shared.own_ring.release(items);
        if (!item.more) return;
        int head = item.kv_head * a.group, tile = item.first_tile;
#pragma unroll 1
        for (const unsigned end = n + item.tiles * a.group; n < end; ++n) {
            const std::int64_t place =
                ((std::int64_t{item.batch} * a.H + head) * a.slots + item.slot + tile) * T::parts + part;
            const bool adds = tile >= item.after && tile < item.after_end;
            if (ptx::elect_lane()) {
                std::uint32_t* const turn = a.turns + place;
                float* const to = a.grad_q + place * T::part_floats;
                const std::uint32_t from = ptx::shared_address(shared.grad_q[part][Ring<T::buffers>::stage(n)]);
                if (adds && a.tried < 2) {
                    while (ptx::load_acquire(turn) != static_cast<unsigned>(item.tile) + 2) {
                    }
                    ptx::fence_async_global();
                }
                ring.wait_full(n);
                if (adds) {
                    ptx::bulk_add(to, from, bytes);
                } else {
                    ptx::bulk_store(to, from, bytes);
                }
                ptx::tma_commit();
                ptx::tma_wait_read<0>();
                ptx::mbarrier_arrive(ring.empty(n));
                ptx::tma_wait<0>();
                ptx::fence_async_global();
                ptx::store_release(turn, static_cast<unsigned>(item.tile) + 1);
            }
            if (++tile >= item.first_tile + item.tiles) tile = item.first_tile, ++head;
        }
    }
}

template <class T>
__device__ void multiply(const FusedArguments<typename T::Storage>& a, FusedShared<T>& shared, int group) {
    using Storage = typename T::Storage;
    using OwnTile = typename T::OwnTile;
    using RowsTile = typename T::RowsTile;
    using GradientsTile = typename T::GradientsTile;
    const std::uint32_t rows_before = group * group_rows * OwnTile::row_bytes;
    const std::uint32_t k = shared.k.address() + rows_before, v = shared.v.address() + rows_before;
    const int thread = static_cast<int>(threadIdx.x) % group_threads;
    // Where a lane's row of the first matrices of a warp's gradients of scores is put: of those of the rows 16j on the
    // chunk's number, that the swizzle has XORed with the row's, differs in 2j.
    const int gradients_row = group * group_rows + thread / warp_lanes * 16 + thread % 16;
    const std::uint32_t gradients_at =
        gradients_row * GradientsTile::row_bytes + ((thread % warp_lanes / 16 ^ gradients_row % 8) << 4);

    unsigned n = 0;     // halves of row tiles so far
    unsigned tile = 0;  // row tiles so far
    for (unsigned items = 0;; ++items) {
        shared.own_ring.wait_full(items);
        if (!shared.item.more) break;
        const unsigned begin = tile, end = tile + shared.item.tiles * a.group;
        const int first_key = shared.item.base + group * group_rows;

        float grad_k[T::head_dim / 2], grad_v[T::head_dim / 2];
#pragma unroll
        for (int i = 0; i < T::head_dim / 2; ++i) grad_k[i] = grad_v[i] = 0;
        Weights<group_rows / 16> weights, gradients;
        float grad_q[T::part_sums];

        const auto finish_sums = [&] {
            ptx::pin(grad_k);
            ptx::pin(grad_v);
            pin(weights);
            pin(gradients);
        };
        // Of a tile whose gradients of scores are in shared memory.
        const auto start_grad_q = [&](unsigned of) {
            shared.gradients_ring.wait_full(of);
            std::uint32_t operands[2] = {shared.gradients[of % 2][T::halves > 1 ? group : 0].address(),
                                         shared.k.address() + (T::halves > 1 ? 0 : group * OwnTile::block_bytes)};
            ptx::pin(operands);
            const std::uint64_t left = GradientsTile::along_rows(operands[0], 0);
            const std::uint64_t right = OwnTile::along_rows(operands[1], 0);
            ptx::wgmma_fence();
#pragma unroll
            for (float& sum : grad_q) sum = 0;
#pragma unroll
            for (int j = 0; j < T::own; j += 16) {
                ptx::wgmma<Storage, ptx::Major::other, ptx::Major::other>(
                    grad_q, descriptor_after(left, j * GradientsTile::row_bytes),
                    descriptor_after(right, j * OwnTile::row_bytes), j > 0);
            }
            ptx::wgmma_commit();
        };
        const auto put_grad_q = [&](unsigned of) {
            ptx::pin(grad_q);
            shared.gradients_ring.release(of);
            const auto& ring = shared.grad_q_ring[group];
            ring.wait_empty(of);
            auto* const to = reinterpret_cast<float4*>(shared.grad_q[group][Ring<T::buffers>::stage(of)]) + thread;
#pragma unroll
            for (int j = 0; j < T::part_sums / 4; ++j) {
                to[j * group_threads] = {grad_q[4 * j], grad_q[4 * j + 1], grad_q[4 * j + 2], grad_q[4 * j + 3]};
            }
            ptx::fence_async_shared();
            __syncwarp();
            if (ptx::elect_lane()) ptx::mbarrier_arrive(ring.full(of));
        };
        // `follows`: another half of the item came before; `finishes`: it was the last one of a tile.
        const auto step = [&](int half, auto follows, auto finishes) {
            const int stage = Ring<T::stages>::stage(n);
            const std::uint32_t rows_q = shared.q[stage].address(), rows_grad_out = shared.grad_out[stage].address();
            float x[group_rows / 2] = {}, grad[group_rows / 2] = {};  // keys down, rows across
            std::uint32_t own[2] = {k, v};
            ptx::pin(own);  // their descriptors are made again, or would take more registers than there are
            shared.rows_ring.wait_full(n);
            ptx::wgmma_fence();
            start_rows<OwnTile, RowsTile>(x, own[0], rows_q);
            ptx::wgmma_commit();
            if constexpr (follows) {
                ptx::wgmma_wait<1>();
                finish_sums();
                shared.rows_ring.release(n - 1);
            }
            ptx::wgmma_fence();
            start_rows<OwnTile, RowsTile>(grad, own[1], rows_grad_out);
            ptx::wgmma_commit();
            ptx::wgmma_wait<1>();
            ptx::pin(x);
            const Facts* const facts = shared.facts[stage];
            const bool hides = facts[group_rows - 1].begin > first_key || facts[0].end < first_key + group_rows;
            const bool plain = !hides && !a.scoring.capped;
            if (plain) weights_of_keys(a.scoring, facts, x);
            ptx::wgmma_wait<0>();
            ptx::pin(grad);
            if (plain) {
                gradients_of_keys(facts, x, grad);
            } else {
                finish_keys(a.scoring, facts, first_key + row_of(0), x, grad);
            }
            pack<Storage>(weights, x);
            pin(weights);
            pack<Storage>(gradients, grad);
            pin(gradients);
            if (half == 0) shared.gradients_ring.wait_empty(tile);
            const std::uint32_t to = shared.gradients[tile % 2][half].address() + gradients_at;
#pragma unroll
            for (int j = 0; j < group_rows / 16; ++j) ptx::stmatrix(to ^ 32 * j, gradients[j]);
            if (half == T::halves - 1) {
                ptx::fence_async_shared();
                __syncwarp();
                if (ptx::elect_lane()) ptx::mbarrier_arrive(shared.gradients_ring.full(tile));
            }
            if constexpr (finishes) start_grad_q(tile - 1);
            ptx::pin(grad_k);
            ptx::pin(grad_v);
            pin(gradients);
            ptx::wgmma_fence();
            start_weights<RowsTile>(grad_v, weights, rows_grad_out);
            start_weights<RowsTile>(grad_k, gradients, rows_q);
            ptx::wgmma_commit();
            if constexpr (finishes) {
                ptx::wgmma_wait<1>();
                put_grad_q(tile - 1);
            }
            if constexpr (!T::delays) {
                start_grad_q(tile);
                ptx::wgmma_wait<1>();
                finish_sums();
                shared.rows_ring.release(n);
                ptx::wgmma_wait<0>();
                put_grad_q(tile);
            }
            ++n;
        };
        constexpr std::true_type yes;
        constexpr std::false_type no;
        if constexpr (!T::delays) {
#pragma unroll 1
            for (; tile < end; ++tile) step(0, no, no);
        } else if (begin < end) {
            step(0, no, no);
            if constexpr (T::halves > 1) step(1, yes, no);
            ++tile;
#pragma unroll 1
            for (; tile < end; ++tile) {
                step(0, yes, yes);
                if constexpr (T::halves > 1) step(1, yes, no);
            }
            start_grad_q(end - 1);
            ptx::wgmma_wait<0>();
            finish_sums();
            shared.rows_ring.release(n - 1);
            put_grad_q(end - 1);
        }
        const FusedItem item = shared.item;
        shared.own_ring.release(items);
        // Keys past a row's length have gradients too, of zero.
        const auto store = [&](const auto& sums, const Vectors<Storage>& tensor, float factor) {
            store_sums<Storage>(
                sums, tensor.in_chunks, a.D,
                [&](int half) {
                    const int key = item.key + group * group_rows + row_of(half);
                    return key < item.key_end ? tensor.at(item.batch, key, item.kv_head) : nullptr;
                },
                [&](int) { return factor; });
        };
        store(grad_k, a.grad_k, a.scale);
        store(grad_v, a.grad_v, 1);
    }
}

template <class T>
__global__ void __launch_bounds__(block_threads, 1)
    attention_backward_sm90(const __grid_constant__ FusedArguments<typename T::Storage> a) {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    auto& shared = *reinterpret_cast<FusedShared<T>*>(shared_bytes);
    if (threadIdx.x == 0) {
        shared.rows_ring.init(multiplying_groups * 4);
        shared.own_ring.init(multiplying_groups * 4 + 2);
        shared.gradients_ring.init(multiplying_groups * 4, multiplying_groups * 4);
        for (auto& ring : shared.grad_q_ring) ring.init(1, 4);
        ptx::mbarrier_init(ptx::shared_address(&shared.landed), 1);
        ptx::mbarrier_init_fence();
    }
    __syncthreads();
    const int group = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / group_threads, 0);
    if (group == 0) {
        ptx::setmaxnreg_dec<fused_loading_registers>();
        const int warp = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / warp_lanes, 0);
        if (warp == 0) {
            load<T>(a, shared);
        } else if (warp <= 2) {
            add<T>(a, shared, warp - 1);
        }
    } else {
        ptx::setmaxnreg_inc<fused_multiplying_registers>();
        multiply<T>(a, shared, group - 1);
    }
}

// ---- queries' gradients, rounded ----

template <class Storage>
struct RoundArguments {
    KeyRange keys;
    const float* grad_q;
    const std::uint32_t* turns;
    Vectors<Storage> to;
    int H, D, slots;
    float scale;
};

template <class T>
__global__ void __launch_bounds__(T::parts* group_threads)
    attention_grad_q_sm90(const __grid_constant__ RoundArguments<typename T::Storage> a) {
    using Storage = typename T::Storage;
    const int head = static_cast<int>(blockIdx.x % a.H);
    const int slot = static_cast<int>(blockIdx.x / a.H % a.slots), batch = static_cast<int>(blockIdx.x / a.H / a.slots);
    int sequence_index = batch, first_slot = 0;
    if (a.keys.cu_seqlens) {
        int low = 0, high = static_cast<int>(a.keys.documents);
        const auto slot_of = [&](int document) {
            return static_cast<int>(a.keys.sequence(document).queries.begin) / T::rows + document;
        };
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            (slot_of(middle) <= slot ? low : high) = middle;
        }
        sequence_index = low;
        first_slot = slot_of(low);
    }
    const Sequence sequence = a.keys.sequence(sequence_index);
    const int row = (slot - first_slot) * T::rows;
    const int queries = static_cast<int>(sequence.queries.size());
    if (row < 0 || row >= queries) return;
    const int part = static_cast<int>(threadIdx.x) / group_threads,
              thread = static_cast<int>(threadIdx.x) % group_threads;
    const std::int64_t place = ((std::int64_t{batch} * a.H + head) * a.slots + slot) * T::parts + part;
    float sums[T::part_sums] = {};
    if (a.turns[place] != 0) {
        const auto* const from = reinterpret_cast<const uint4*>(a.grad_q + place * T::part_floats);
#pragma unroll
        for (int j = 0; j < T::part_sums / 4; ++j) {
            const uint4 four = ptx::load_once(from + j * group_threads + thread);
            sums[4 * j] = __uint_as_float(four.x);
            sums[4 * j + 1] = __uint_as_float(four.y);
            sums[4 * j + 2] = __uint_as_float(four.z);
            sums[4 * j + 3] = __uint_as_float(four.w);
        }
    }
    const int column = T::halves > 1 ? 0 : part * T::part_columns;
    store_sums<Storage>(
        sums, a.to.in_chunks, a.D - column,
        [&](int half) {
            const int own = row + (T::halves > 1 ? part * group_rows : 0) + row_of(half);
            if (own >= queries) return static_cast<Storage*>(nullptr);
            return a.to.at(batch, sequence.queries.begin + own, head) + column;
        },
        [&](int) { return a.scale; });
}

}  // namespace

void attention_backward_sm90(const attention::Backward& a) {
    with_16_bits(a.problem.q.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        with_head_dim(a.problem.D, BackwardHeadDims{}, [&](auto head_dim) {
            using T = HopperBackward<Storage, head_dim()>;
            static_assert(sizeof(KeysOwnShared<T>) <= shared_bytes_hopper);
            static_assert(sizeof(RowsOwnShared<T>) <= shared_bytes_hopper);
            const Problem& p = a.problem;
            const std::int64_t rows = p.B * p.H * p.T;
            auto* facts = scratch<Facts>(static_cast<std::size_t>(rows + 2 * group_rows));
            const FactsArguments<Storage> of_rows{p.keys,
                                                  Vectors<const Storage>(a.grad_out),
                                                  Vectors<const Storage>(a.out),
                                                  static_cast<const float*>(a.lse.data),
                                                  a.grad_lse ? static_cast<const float*>(a.grad_lse->data) : nullptr,
                                                  facts,
                                                  p.T,
                                                  static_cast<unsigned>(p.H),
                                                  static_cast<int>(p.D)};
            const auto tiles_of_facts = static_cast<unsigned>(p.B * p.H * divide_up(p.T, facts_rows));
            launch(attention_facts_sm90<Storage>, {tiles_of_facts, facts_threads}, of_rows);

            const TensorView k = for_tensor_copies(p.k), v = for_tensor_copies(p.v);
            const TensorView q = for_tensor_copies(p.q), grad_out = for_tensor_copies(a.grad_out);
            if (rows == 0 && p.S == 0) return;
            const char* const tried = std::getenv("PYGPT_TRYB");
            if (tried && std::atoi(tried) > 0)
                if constexpr (head_dim() != 96) {
                    using F = HopperFused<Storage, head_dim()>;
                    static_assert(sizeof(FusedShared<F>) <= shared_bytes_hopper);
                    const auto slots =
                        static_cast<int>(divide_up(p.T, F::rows) + (p.keys.cu_seqlens ? p.keys.documents : 0));
                    const std::int64_t places = p.B * p.H * slots;
                    auto* const turns = scratch<std::uint32_t>(static_cast<std::size_t>(places * F::parts));
                    auto* const grad_q = scratch<float>(static_cast<std::size_t>(places * F::parts * F::part_floats));
                    clear(turns, static_cast<std::size_t>(places * F::parts) * sizeof *turns);
                    if (p.B > 0 && p.S > 0) {
                        const FusedArguments<Storage> fused{map_or_any<typename F::RowsTile>(q, k),
                                                            map_or_any<typename F::RowsTile>(grad_out, k),
                                                            map_or_any<typename F::OwnTile>(k, q),
                                                            map_or_any<typename F::OwnTile>(v, q),
                                                            p.keys,
                                                            Schedule<Over::keys>(p, F::own),
                                                            Scoring(p),
                                                            facts,
                                                            Vectors<Storage>(a.grad_k),
                                                            Vectors<Storage>(a.grad_v),
                                                            grad_q,
                                                            turns,
                                                            p.S,
                                                            static_cast<int>(p.H),
                                                            static_cast<int>(p.D),
                                                            static_cast<int>(p.H / p.G),
                                                            slots,
                                                            static_cast<float>(p.scale),
                                                            std::atoi(tried)};
                        launch(attention_backward_sm90<F>,
                               {fused.schedule.blocks, block_threads, sizeof(FusedShared<F>)}, fused);
                    }
                    const RoundArguments<Storage> rounding{p.keys,
                                                           grad_q,
                                                           turns,
                                                           Vectors<Storage>(a.grad_q),
                                                           static_cast<int>(p.H),
                                                           static_cast<int>(p.D),
                                                           slots,
                                                           static_cast<float>(p.scale)};
                    launch(attention_grad_q_sm90<F>, {static_cast<unsigned>(places), F::parts * group_threads},
                           rounding);
                    return;
                }
            const auto arguments = [&]<class Rows, class Keys>(Rows, Keys) {
                return GradientArguments<Storage>{map_or_any<typename Rows::Type>(q, k),
                                                  map_or_any<typename Rows::Type>(grad_out, k),
                                                  map_or_any<typename Keys::Type>(k, q),
                                                  map_or_any<typename Keys::Type>(v, q),
                                                  p.keys,
                                                  Scoring(p),
                                                  facts,
                                                  p.T,
                                                  p.S,
                                                  static_cast<int>(p.H),
                                                  static_cast<int>(p.D),
                                                  static_cast<int>(p.H / p.G),
                                                  static_cast<float>(p.scale)};
            };
            if (p.B > 0 && p.S > 0) {
                const KeyGradients<Storage> of_keys{
                    arguments(TypeOf<typename T::RowsTile>{}, TypeOf<typename T::OwnTile>{}),
                    Schedule<Over::keys>(p, T::own), Vectors<Storage>(a.grad_k), Vectors<Storage>(a.grad_v)};
                launch(attention_backward_keys_sm90<T>,
                       {of_keys.schedule.blocks, block_threads, sizeof(KeysOwnShared<T>)}, of_keys);
            }
            if (rows > 0) {
                const QueryGradient<Storage> of_queries{
                    arguments(TypeOf<typename T::OwnTile>{}, TypeOf<typename T::KeysTile>{}),
                    Schedule<Over::rows>(p, T::own), Vectors<Storage>(a.grad_q)};
                launch(attention_backward_queries_sm90<T>,
                       {of_queries.schedule.blocks, block_threads, sizeof(RowsOwnShared<T>)}, of_queries);
            }
        });
    });
}

}  // namespace pygpt::cuda
