// Attention forward, and the weights on request, by mma.sync. Contract: ops/attention.h.
//
// A block owns a tile of rows of one kv head (problem.cuh) and walks over the key tiles that these see. A warp owns 16
// or 32 of the rows whole, so that no warp waits for another's scores:
//
//     scores (rows, keys) = q · kᵀ;  p = online softmax;  out (rows, D) = out · factor + p · v
//
// Copies to shared memory are asynchronous, one tile each of k and v: v arrives while scores are computed, the next k
// while weights are made and out is summed. A row's bits depend on the keys it sees alone: accumulators of a warp's
// rows do not mix, key tiles count from the sequence's first key, and those that are hidden from a row do nothing to
// it.
//
// Floor: 4 · T · S · D operations a head (half with causal); q, k, v read and out written once.
#include "cuda/attention/online_softmax.cuh"

namespace pygpt::cuda {
namespace {

template <class Storage>
struct ForwardArguments {
    DeviceProblem<Storage> p;
    Tiling<Over::rows> tiling;
    Vectors<Storage> out;
    float* lse;
};

template <class T>
struct ForwardShared {
    SharedTile<typename T::Storage, T::rows, T::head_dim> q;  // then out
    SharedTile<typename T::Storage, T::keys, T::head_dim> k, v;
    RowFacts facts[T::rows];
    std::uint64_t dropout;  // the key; what philox makes of it alone would else take registers all the time
};

template <class T>
__global__ void __launch_bounds__(T::threads, 1)
    attention_forward_sm80(const __grid_constant__ ForwardArguments<typename T::Storage> a) {
    using Storage = typename T::Storage;
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    auto& shared = *reinterpret_cast<ForwardShared<T>*>(shared_bytes);
    const auto& p = a.p;
    const BlockRows own(p, a.tiling, blockIdx.x);
    if (!own.any()) return;
    const Sequence& sequence = own.sequence;
    const RowTile& rows = own.rows;
    const int warp_row = static_cast<int>(threadIdx.x) / warp_lanes * T::fragments * fragment_rows;
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;

    const TileKeys seen(p.keys, sequence, rows);
    const Storage* const first_k = p.k.at(sequence.batch, sequence.keys.begin, own.kv_head);
    const Storage* const first_v = p.v.at(sequence.batch, sequence.keys.begin, own.kv_head);
    const auto load_keys = [&](auto& tile, const Vectors<const Storage>& tensor, const Storage* first, int base,
                               int begin) {
        load_tile<std::remove_reference_t<decltype(tile)>, T::threads, Storage>(
            tile, tensor.in_chunks, p.D, begin - base, seen.any.end - base,
            KeyVector<const Storage>{first + base * tensor.time, tensor.time});
        ptx::cp_async_commit();
    };
    const int first_tile = seen.any.begin / T::keys * T::keys;
    load_tile<decltype(shared.q), T::threads, Storage>(shared.q, p.q.in_chunks, p.D, 0, rows.count,
                                                       RowVector<const Storage>{p.q, sequence.batch, rows});
    ptx::cp_async_commit();
    if (!seen.any.empty()) load_keys(shared.k, p.k, first_k, first_tile, seen.any.begin);
    for (int row = static_cast<int>(threadIdx.x); row < T::rows; row += T::threads) {
        const int real = row < rows.count ? row : rows.count - 1;
        shared.facts[row] = facts_of(p, sequence, rows.query_of(real), rows.head_of(real));
    }
    if (threadIdx.x == 0) shared.dropout = dropout_key(p.scores, own.in_sequence);

    OnlineSoftmax<T::fragments> softmax;
    Accumulators<T::fragments, T::head_dim / block_columns> out;
    clear(out);
    for (int base = first_tile; base < seen.any.end; base += T::keys) {
        ptx::cp_async_wait<0>();
        __syncthreads();  // k is here, and everyone is done with v
        load_keys(shared.v, p.v, first_v, base, shared.facts[0].begin);
        Accumulators<T::fragments, T::keys / block_columns> x;
        multiply_rows(x, shared.q, warp_row, shared.k);
        ptx::cp_async_wait<0>();
        __syncthreads();  // v is here, and everyone is done with k
        if (base + T::keys < seen.any.end) load_keys(shared.k, p.k, first_k, base + T::keys, 0);
        const Keys all_seen{shared.facts[T::rows - 1].begin, shared.facts[0].end};  // that of the last row there is
        finish_scores<Storage>(p.scores, shared.facts, warp_row, base,
                               all_seen.begin <= base && all_seen.end >= base + T::keys, x);
        softmax.step(x, out);
        if (p.scores.drops) {
            const Kept<T::fragments, T::keys / block_columns> kept(p.scores, shared.dropout, shared.facts, warp_row,
                                                                   base);
            drop(x, 1, kept);
        }
        multiply_weights(out, x, shared.v);
    }
    ptx::cp_async_wait<0>();
    __syncthreads();  // without keys, q may still be on its way
    softmax.finish();

    // A warp's rows of q are read by no other.
    put_rows(shared.q, warp_row, 0, out,
             [&](int i, int half) { return softmax.inverse(i, half) * (p.scores.drops ? p.scores.kept : 1.0f); });
    __syncwarp();
    const int warp_rows = T::fragments * fragment_rows;
    const int left = rows.count - warp_row < warp_rows ? rows.count - warp_row : warp_rows;
    store_rows<decltype(shared.q), Storage>(shared.q, a.out.in_chunks, p.D, warp_row, left,
                                            RowVector<Storage>{a.out, sequence.batch, rows});
    if (lane % 4 == 0) {
#pragma unroll
        for (int i = 0; i < T::fragments; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = warp_row + 16 * i + 8 * half + lane / 4;
                if (row < rows.count) {
                    a.lse[(sequence.batch * p.H + rows.head_of(row)) * p.T + rows.query_of(row)] = softmax.lse(i, half);
                }
            }
        }
    }
}

// ---- weights ----

template <class Storage>
struct WeightsArguments {
    DeviceProblem<Storage> p;
    Tiling<Over::rows> tiling;
    const float* lse;
    Storage* weights;  // (B, H, T, S)
};

template <class T>
struct WeightsShared {
    SharedTile<typename T::Storage, T::own, T::head_dim> q;
    SharedTile<typename T::Storage, T::others, T::head_dim> k;
    RowFacts facts[T::own];
};

// As the forward, but the weights are computed from lse and written, and zeros for all keys outside of the tiles.
template <class T>
__global__ void __launch_bounds__(T::threads, 1)
    attention_weights_sm80(const __grid_constant__ WeightsArguments<typename T::Storage> a) {
    using Storage = typename T::Storage;
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    auto& shared = *reinterpret_cast<WeightsShared<T>*>(shared_bytes);
    const auto& p = a.p;
    const BlockRows own(p, a.tiling, blockIdx.x);
    if (!own.any()) return;
    const Sequence& sequence = own.sequence;
    const RowTile& rows = own.rows;
    const int warp_row = static_cast<int>(threadIdx.x) / warp_lanes * fragment_rows;
    const TileKeys seen(p.keys, sequence, rows);
    const auto weights_of = [&](int row) {
        return a.weights + ((sequence.batch * p.H + rows.head_of(row)) * p.T + rows.query_of(row)) * p.S;
    };

    load_tile<decltype(shared.q), T::threads, Storage>(shared.q, p.q.in_chunks, p.D, 0, rows.count,
                                                       RowVector<const Storage>{p.q, sequence.batch, rows});
    ptx::cp_async_commit();
    for (int row = static_cast<int>(threadIdx.x); row < T::own; row += T::threads) {
        const int real = row < rows.count ? row : rows.count - 1;
        RowFacts facts = facts_of(p, sequence, rows.query_of(real), rows.head_of(real));
        const Lse lse(a.lse[(sequence.batch * p.H + facts.head) * p.T + rows.query_of(real)]);
        facts.lse_high = lse.high;
        facts.lse_low = lse.low;
        shared.facts[row] = facts;
    }
    const int first_tile = seen.any.begin / T::others * T::others;
    int base = first_tile;
    for (; base < seen.any.end; base += T::others) {
        load_tile<decltype(shared.k), T::threads, Storage>(
            shared.k, p.k.in_chunks, p.D, seen.any.begin - base, seen.any.end - base,
            KeyVector<const Storage>{p.k.at(sequence.batch, sequence.keys.begin + base, own.kv_head), p.k.time});
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        __syncthreads();
        Accumulators<1, T::others / block_columns> x;
        multiply_rows(x, shared.q, warp_row, shared.k);
        finish_scores<Storage>(p.scores, shared.facts, warp_row, base, false, x);
#pragma unroll
        for (int j = 0; j < T::others / block_columns; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const Element<false> at(warp_row, 0, j, e);
                const std::int64_t key = sequence.keys.begin + base + at.key;
                if (at.row >= rows.count || key >= p.S) continue;
                const RowFacts& row = shared.facts[at.row];
                weights_of(at.row)[key] = from_float<Storage>(weight_of(x[0][j][e], row.lse_high, row.lse_low));
            }
        }
        __syncthreads();
    }
    // Without keys, q is on its way: nothing is left in flight when a block ends. Nobody reads it, so that this is not
    // noticed if removed.
    ptx::cp_async_wait<0>();
    const std::int64_t begin = sequence.keys.begin + (first_tile < base ? first_tile : 0);
    const std::int64_t end = sequence.keys.begin + (first_tile < base ? base : 0);
    for (int row = static_cast<int>(threadIdx.x) / warp_lanes; row < rows.count; row += T::warps) {
        Storage* const weights = weights_of(row);
        for (std::int64_t key = threadIdx.x % warp_lanes; key < p.S; key += warp_lanes) {
            if (key < begin || key >= end) weights[key] = from_float<Storage>(0);
        }
    }
}

}  // namespace

void attention_forward(const attention::Forward& a) {
    with_storage(a.problem.q.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        with_head_dim(a.problem.D, HeadDims<Storage>{}, [&](auto head_dim) {
            using T = ForwardSizes<Storage, head_dim()>;
            static_assert(sizeof(ForwardShared<T>) <= shared_bytes_everywhere);
            const ForwardArguments<Storage> arguments{DeviceProblem<Storage>(a.problem),
                                                      Tiling<Over::rows>(a.problem, T::rows), Vectors<Storage>(a.out),
                                                      static_cast<float*>(a.lse.data)};
            launch(attention_forward_sm80<T>, {arguments.tiling.blocks(), T::threads, sizeof(ForwardShared<T>)},
                   arguments);
        });
    });
}

void attention_weights(const attention::Weights& a) {
    with_storage(a.problem.q.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        with_head_dim(a.problem.D, FewHeadDims{}, [&](auto head_dim) {
            using T = GradientSizes<Storage, head_dim()>;
            static_assert(sizeof(WeightsShared<T>) <= shared_bytes_everywhere);
            const WeightsArguments<Storage> arguments{
                DeviceProblem<Storage>(a.problem), Tiling<Over::rows>(a.problem, T::own),
                static_cast<const float*>(a.lse.data), static_cast<Storage*>(a.weights.data)};
            launch(attention_weights_sm80<T>, {arguments.tiling.blocks(), T::threads, sizeof(WeightsShared<T>)},
                   arguments);
        });
    });
}

}  // namespace pygpt::cuda
