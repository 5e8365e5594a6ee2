// Attention backward on Hopper in two kernels, neither of which adds to what another block has written.
//
// Keys: a block owns a key tile and sums grad_k and grad_v over the rows that see it, query heads of the kv head
// included, in order. Scores stand transposed in the accumulators, keys down and rows across, which so are operands of
// the sums: nothing of the tile goes through shared memory. Queries: a block owns a row tile and sums grad_q over the
// key tiles, in order; the sum of a tile is under way while the products of the next begin.
//
// Scores are computed twice, 14 · T · S · D operations a head instead of the floor of 10: for that no block waits for
// another, and gradients never travel in float32.
//
// Hidden memory may be anything, and 0 · NaN is NaN: where it would be an operand of a sum (rows past a sequence's end
// in the keys' kernel, k in the queries') the loading warp makes it zeros.
#ifndef PYGPT_CUDA_ATTENTION_BACKWARD_SEPARATE_SM90_CUH
#define PYGPT_CUDA_ATTENTION_BACKWARD_SEPARATE_SM90_CUH

#include "cuda/attention/backward_sm90.cuh"

namespace pygpt::cuda {
namespace {

// Sizes by the registers of a group: products of a tile, sums, and a packed operand or two.
template <class Storage, int head_dim>
struct HopperSeparate : HopperBackward<Storage, head_dim> {
    static constexpr int rows = group_rows;  // beside two sums
    static constexpr int keys = 96;          // beside one
    static constexpr int stages = 2;
    using KeysTile = SwizzledTile<Storage, keys, head_dim>;
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
    unsigned items = 0, loaded = 0, landed = 0;  // so far
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
        int head = item.kv_head * a.group, row = item.first_tile * T::rows;
#pragma unroll 1
        for (const unsigned end = loaded + item.tiles * a.group; loaded < end; ++loaded) {
            load_rows(a, shared, loaded, batch, head, first_query + row, queries - row, landed);
            row += T::rows;
            if (row >= (item.first_tile + item.tiles) * T::rows) row = item.first_tile * T::rows, ++head;
        }
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

// The keys that a warpgroup's rows see, counted from the first key of the first tile that any of them does.
struct SeenKeys {
    int begin[group_rows], end[group_rows];

    // Scores become -inf where they are hidden, in the tile that begins with key `first`.
    template <int scores>
    __device__ void hide(float (&x)[scores], int first) const {
        first += static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int from = begin[row_of(half)] - first, to = end[row_of(half)] - first;
#pragma unroll
            for (int j = 0; j < scores / 4; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int key = 8 * j + e;
                    if (key < from || key >= to) x[4 * j + 2 * half + e] = -infinity;
                }
            }
        }
    }
};

// The rows of a warpgroup, the keys that any of them sees, and those that all do; none if there are no rows.
struct GroupRows {
    RowTile rows;
    Keys any, all;

    __device__ GroupRows(const KeyRange& range, const Rows& all_rows, std::int64_t first)
        : rows(all_rows, first, group_rows), any{0, 0}, all{0, 0} {
        if (rows.count <= 0) return;
        const TileKeys seen(range, all_rows.sequence, rows);
        any = seen.any;
        all = seen.all;
    }
    // Writes what the rows of this warp see; the last row there is stands for those after it.
    __device__ void put(SeenKeys& seen, const KeyRange& range, const Sequence& sequence, int base) const {
        if (threadIdx.x % 4 == 0) {
#pragma unroll 1
            for (int half = 0; half < 2; ++half) {
                const int row = row_of(half);
                Keys keys{0, 0};
                if (rows.count > 0) {
                    keys = keys_of(range, sequence, rows.query_of(row < rows.count ? row : rows.count - 1));
                }
                seen.begin[row] = keys.begin - base;
                seen.end[row] = keys.end - base;
            }
        }
        __syncwarp();  // before other lanes read them, much later: not noticed if removed
    }
};

// A tile of a query head's rows.
struct RowsItem {
    Sequence sequence;
    int head;
    std::int64_t first_row;
    Rows all_rows;
    int base, tiles;  // the first key of the first key tile that any row sees; how many key tiles

    template <int tile_rows, int tile_keys, class Arguments>
    __device__ static RowsItem make(const Arguments& a, unsigned index) {
        const Work work = a.schedule.work(index);
        RowsItem item{};
        if (work.none) return item;
        item.sequence = a.keys.sequence(work.sequence);
        item.head = work.kv_head;  // the schedule is one of query heads
        item.first_row = work.tile * tile_rows;
        item.all_rows = {item.sequence, item.head, 1};
        const RowTile rows(item.all_rows, item.first_row, tile_rows);
        if (rows.count <= 0) return item;
        const Keys any = TileKeys(a.keys, item.sequence, rows).any;
        item.base = any.begin / tile_keys * tile_keys;
        item.tiles = any.empty() ? 0 : (any.end - item.base + tile_keys - 1) / tile_keys;
        return item;
    }
};

template <class Arguments>
__device__ RowsLoads loads_of(const RowsItem& item, const Arguments& a) {
    const Sequence& sequence = item.sequence;
    const int first = static_cast<int>(sequence.keys.begin);
    RowsLoads loads;
    loads.query = static_cast<int>(sequence.queries.begin + item.first_row);
    loads.head = item.head;
    loads.batch = static_cast<int>(sequence.batch);
    loads.key = first + item.base;
    loads.tiles = item.tiles;
    if (loads.tiles == 0) return loads;
    loads.seen.begin = first + keys_of(a.keys, sequence, sequence.queries.begin).begin;
    loads.seen.end = first + keys_of(a.keys, sequence, sequence.queries.end - 1).end;
    if (loads.seen.end >= a.S) loads.seen.end = INT_MAX;
    return loads;
}

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
        if (more) item = loads_of(RowsItem::make<T::own, T::keys>(a, index), a);
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
            // Its wait is not noticed if removed: k's stage, waited for above, is given back after v's.
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
            ptx::wgmma_fence();  // for moves that ptxas makes: PTX has none since the last one, not noticed if removed
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

// ---- host ----

template <class Storage, int head_dim>
void backward_in_two(const attention::Backward& a, const GradientInputs& inputs) {
    using T = HopperSeparate<Storage, head_dim>;
    static_assert(sizeof(KeysOwnShared<T>) <= shared_bytes_hopper);
    static_assert(sizeof(RowsOwnShared<T>) <= shared_bytes_hopper);
    const Problem& p = a.problem;
    const auto by_keys = gradient_arguments<Storage, typename T::RowsTile, typename T::OwnTile>(p, inputs);
    const KeyGradients<Storage> of_keys{by_keys, Schedule<Over::keys>(p, T::own), Vectors<Storage>(a.grad_k),
                                        Vectors<Storage>(a.grad_v)};
    launch(attention_backward_keys_sm90<T>, {of_keys.schedule.blocks, block_threads, sizeof(KeysOwnShared<T>)},
           of_keys);
    const auto by_rows = gradient_arguments<Storage, typename T::OwnTile, typename T::KeysTile>(p, inputs);
    const QueryGradient<Storage> of_queries{by_rows, Schedule<Over::rows>(p, T::own), Vectors<Storage>(a.grad_q)};
    launch(attention_backward_queries_sm90<T>, {of_queries.schedule.blocks, block_threads, sizeof(RowsOwnShared<T>)},
           of_queries);
}

}  // namespace
}  // namespace pygpt::cuda

#endif
