// Attention backward by mma.sync: the gradients of q, k, v, and that of the bias. Contract: ops/attention.h.
//
// The weights are computed again from the scores and lse, tile by tile. With o = grad_out, row by row:
//
//     p = 2^(scores - lse);  d = dropout / (1 - dropout) factors
//     delta = o · out - grad_lse;  s = p · (d · (o · vᵀ) - delta)      the gradient of the scores, = that of the bias
//     grad_v += (d · p)ᵀ · o;  grad_k += scale · sᵀ · q;  grad_q += scale · s · k        (s times the softcap's slope)
//
// Four kernels. Statistics: a warp makes lse in units of log 2 and delta of a row. Keys: a block owns a key tile and
// sums grad_k and grad_v over the rows, query heads of the kv head included, in order; scores stand transposed in the
// accumulators, which so are operands of the sums, and nothing of the tile goes through shared memory. Queries: a block
// owns a row tile and sums grad_q over the key tiles, in order. Bias: a block owns a tile of the bias and sums over
// what shares it. Nobody else writes what a block owns, and no sum depends on the grid.
//
// Scores are computed twice, 14 · T · S · D operations a head instead of the floor of 10. The other way to the same
// bits on every run, where the block that has s also adds to grad_q, in turn, reads and writes 8 · D bytes of grad_q
// for each key tile of 64 and row, 640 · D operations: at the rates of the L2 cache and of mma.sync that takes as long
// as the 256 · D operations which it saves, and blocks wait for each other on top.
#include "cuda/attention/scores.cuh"

namespace pygpt::cuda {
namespace {

struct RowStatistics {
    float lse_high, lse_low, delta;
};

template <class Storage>
struct GradientArguments {
    DeviceProblem<Storage> p;
    Vectors<const Storage> grad_out;
    const RowStatistics* statistics;  // (B, H, T)

    GradientArguments(const attention::Gradients& a, const RowStatistics* made)
        : p(a.problem), grad_out(a.grad_out), statistics(made) {}

    __device__ RowStatistics statistics_of(std::int64_t batch, int head, std::int64_t query) const {
        return statistics[(batch * p.H + head) * p.T + query];
    }
};

__device__ inline RowFacts with_statistics(RowFacts facts, RowStatistics statistics) {
    facts.lse_high = statistics.lse_high;
    facts.lse_low = statistics.lse_low;
    facts.delta = statistics.delta;
    return facts;
}

// ---- statistics ----

constexpr int statistics_warps = 4;

template <class Storage>
struct StatisticsArguments {
    Vectors<const Storage> grad_out, out;
    const float *lse, *grad_lse;  // grad_lse may be null
    RowStatistics* statistics;
    std::int64_t H, T, rows;
    int D;
};

template <class Storage>
__global__ void __launch_bounds__(statistics_warps* warp_lanes)
    attention_statistics_sm80(const __grid_constant__ StatisticsArguments<Storage> a) {
    const std::int64_t row = std::int64_t{blockIdx.x} * statistics_warps + threadIdx.x / warp_lanes;
    if (row >= a.rows) return;
    const std::int64_t batch = row / a.T / a.H, head = row / a.T % a.H, query = row % a.T;
    const Storage* const grad = a.grad_out.at(batch, query, head);
    const Storage* const out = a.out.at(batch, query, head);
    float delta = 0;
    for (int i = static_cast<int>(threadIdx.x) % warp_lanes; i < a.D; i += warp_lanes) {
        delta = fmaf(to_float(grad[i]), to_float(out[i]), delta);
    }
    delta = reduce_warp(delta, Sum{});
    if (threadIdx.x % warp_lanes != 0) return;
    const Lse lse(a.lse[row]);
    a.statistics[row] = {lse.high, lse.low, a.grad_lse ? delta - a.grad_lse[row] : delta};
}

template <class Storage>
const RowStatistics* make_statistics(const attention::Gradients& a) {
    const Problem& p = a.problem;
    const std::int64_t rows = p.B * p.H * p.T;
    auto* statistics = scratch<RowStatistics>(static_cast<std::size_t>(rows));
    const StatisticsArguments<Storage> arguments{Vectors<const Storage>(a.grad_out),
                                                 Vectors<const Storage>(a.out),
                                                 static_cast<const float*>(a.lse.data),
                                                 a.grad_lse ? static_cast<const float*>(a.grad_lse->data) : nullptr,
                                                 statistics,
                                                 p.H,
                                                 p.T,
                                                 rows,
                                                 static_cast<int>(p.D)};
    launch(attention_statistics_sm80<Storage>,
           {static_cast<unsigned>(divide_up(rows, statistics_warps)), statistics_warps * warp_lanes}, arguments);
    return statistics;
}

// ---- queries ----

template <class Storage>
struct QueryGradient {
    GradientArguments<Storage> gradients;
    Tiling<Over::rows> tiling;
    Vectors<Storage> grad_q;
};

template <class T>
struct RowsOwnShared {
    SharedTile<typename T::Storage, T::own, T::head_dim> q, grad_out;  // q, then its gradient
    SharedTile<typename T::Storage, T::others, T::head_dim> k, v;
    RowFacts facts[T::own];
};

template <class T>
__global__ void __launch_bounds__(T::threads, 1)
    attention_backward_queries_sm80(const __grid_constant__ QueryGradient<typename T::Storage> a) {
    using Storage = typename T::Storage;
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    auto& shared = *reinterpret_cast<RowsOwnShared<T>*>(shared_bytes);
    const auto& p = a.gradients.p;
    const BlockRows block(p, a.tiling, blockIdx.x);
    if (!block.any()) return;
    const Sequence& sequence = block.sequence;
    const RowTile& rows = block.rows;
    const int warp_row = static_cast<int>(threadIdx.x) / warp_lanes * fragment_rows;

    const TileKeys seen(p.keys, sequence, rows);
    const auto load_keys = [&](auto& tile, const Vectors<const Storage>& tensor, int base, int begin) {
        load_tile<std::remove_reference_t<decltype(tile)>, T::threads, Storage>(
            tile, tensor.in_chunks, p.D, begin, seen.any.end - base,
            KeyVector<const Storage>{tensor.at(sequence.batch, sequence.keys.begin + base, block.kv_head),
                                     tensor.time});
        ptx::cp_async_commit();
    };
    const auto load_rows_of = [&](auto& tile, const Vectors<const Storage>& tensor) {
        load_tile<std::remove_reference_t<decltype(tile)>, T::threads, Storage>(
            tile, tensor.in_chunks, p.D, 0, rows.count, RowVector<const Storage>{tensor, sequence.batch, rows});
        ptx::cp_async_commit();
    };
    const int first_tile = seen.any.begin / T::others * T::others;
    load_rows_of(shared.q, p.q);
    load_rows_of(shared.grad_out, a.gradients.grad_out);
    if (!seen.any.empty()) {
        load_keys(shared.k, p.k, first_tile, seen.any.begin - first_tile);
        load_keys(shared.v, p.v, first_tile, seen.any.begin - first_tile);
    }
    for (int row = static_cast<int>(threadIdx.x); row < T::own; row += T::threads) {
        const int real = row < rows.count ? row : rows.count - 1;
        const std::int64_t query = rows.query_of(real);
        const int head = rows.head_of(real);
        shared.facts[row] =
            with_statistics(facts_of(p, sequence, query, head), a.gradients.statistics_of(sequence.batch, head, query));
    }

    Accumulators<1, T::head_dim / block_columns> grad_q;
    clear(grad_q);
    for (int base = first_tile; base < seen.any.end; base += T::others) {
        ptx::cp_async_wait<0>();
        __syncthreads();  // k and v are here
        Accumulators<1, T::others / block_columns> x, grad;
        multiply_rows(x, shared.q, warp_row, shared.k);
        multiply_rows(grad, shared.grad_out, warp_row, shared.v);
        __syncthreads();  // everyone is done with v
        const bool more = base + T::others < seen.any.end;
        if (more) load_keys(shared.v, p.v, base + T::others, 0);
        if (p.scores.drops) {
            // The key is read for each tile: what philox makes of it alone would take registers all the time.
            const std::uint64_t dropout = dropout_key(p.scores, block.in_sequence);
            const Kept<1, T::others / block_columns> kept(p.scores, dropout, shared.facts, warp_row, base);
            drop(grad, p.scores.kept, kept);
        }
        const Keys all_seen{shared.facts[T::own - 1].begin, shared.facts[0].end};  // that of the last row there is
        finish_gradients<false, Storage>(p.scores, shared.facts, warp_row, base,
                                         all_seen.begin <= base && all_seen.end >= base + T::others, true, x, grad);
        multiply_weights(grad_q, grad, shared.k);
        __syncthreads();  // everyone is done with k
        if (more) load_keys(shared.k, p.k, base + T::others, 0);
    }
    ptx::cp_async_wait<0>();
    __syncthreads();  // without keys, q may still be on its way

    // A warp's rows of q are read by no other.
    put_rows(shared.q, warp_row, 0, grad_q, [&](int, int) { return p.scale; });
    __syncwarp();
    const int left = rows.count - warp_row < fragment_rows ? rows.count - warp_row : fragment_rows;
    store_rows<decltype(shared.q), Storage>(shared.q, a.grad_q.in_chunks, p.D, warp_row, left,
                                            RowVector<Storage>{a.grad_q, sequence.batch, rows});
}

// ---- keys ----

template <class Storage>
struct KeyGradients {
    GradientArguments<Storage> gradients;
    Tiling<Over::keys> tiling;
    Vectors<Storage> grad_k, grad_v;
};

template <class T>
struct KeysOwnShared {
    SharedTile<typename T::Storage, T::own, T::head_dim> k, v;  // then their gradients
    SharedTile<typename T::Storage, T::others, T::head_dim> q, grad_out;
    RowFacts facts[T::others];
    KeptTile<T::others> kept;
    std::uint64_t dropout;  // the key
    Sequence sequence;      // both here, since the sums leave few registers
};

// Two sums of (own, D) do not fit a warp's registers where D is large: a block then makes a part of their columns.
template <class T>
struct ColumnParts {
    static constexpr int columns = T::head_dim <= 128 ? T::head_dim : 128;
    static constexpr int count = T::head_dim / columns;
};

template <class T>
__global__ void __launch_bounds__(T::threads, 1)
    attention_backward_keys_sm80(const __grid_constant__ KeyGradients<typename T::Storage> a) {
    using Storage = typename T::Storage;
    using Parts = ColumnParts<T>;
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    auto& shared = *reinterpret_cast<KeysOwnShared<T>*>(shared_bytes);
    const auto& p = a.gradients.p;
    const Work work = a.tiling.work(blockIdx.x / Parts::count);
    const int first_column = static_cast<int>(blockIdx.x % Parts::count) * Parts::columns;
    if (work.none) return;
    if (threadIdx.x == 0) {
        shared.dropout = dropout_key(p.scores, work.sequence);
        shared.sequence = p.keys.sequence(work.sequence);
    }
    __syncthreads();
    const Sequence& sequence = shared.sequence;
    const Rows all_rows{sequence, work.kv_head * p.group, p.group};
    const int base = static_cast<int>(work.tile) * T::own;
    const int warp_key = static_cast<int>(threadIdx.x) / warp_lanes * fragment_rows;
    const auto first_key = [&] { return sequence.keys.begin + base; };

    const Span queries = p.keys.queries(sequence, {first_key(), first_key() + T::own});
    const auto first_tile = static_cast<int>((queries.begin - sequence.queries.begin) * p.group / T::others);
    const int end_tile =
        queries.empty()
            ? first_tile
            : static_cast<int>(divide_up((queries.end - sequence.queries.begin) * p.group, std::int64_t{T::others}));
    const auto rows_of = [&](int tile) { return RowTile(all_rows, std::int64_t{tile} * T::others, T::others); };
    const auto load_keys = [&](auto& tile, const Vectors<const Storage>& tensor) {
        const std::int64_t left = sequence.keys.end - first_key();
        const int keys = static_cast<int>(left < T::own ? left : T::own);
        load_tile<std::remove_reference_t<decltype(tile)>, T::threads, Storage>(
            tile, tensor.in_chunks, p.D, 0, keys,
            KeyVector<const Storage>{tensor.at(sequence.batch, first_key(), work.kv_head), tensor.time});
    };
    const auto load_rows_of = [&](auto& tile, const Vectors<const Storage>& tensor, const RowTile& rows) {
        load_tile<std::remove_reference_t<decltype(tile)>, T::threads, Storage>(
            tile, tensor.in_chunks, p.D, 0, rows.count, RowVector<const Storage>{tensor, sequence.batch, rows});
        ptx::cp_async_commit();
    };
    // Rows past the last have no gradient: their grad_out and delta are zero.
    const auto statistics_of = [&](const RowTile& rows) {
        const int row = static_cast<int>(threadIdx.x);
        if (row >= rows.count) return RowStatistics{0, 0, 0};
        return a.gradients.statistics_of(sequence.batch, rows.head_of(row), rows.query_of(row));
    };
    const auto put_facts = [&](const RowTile& rows, const RowStatistics& statistics) {
        const int row = static_cast<int>(threadIdx.x);
        if (row >= T::others) return;
        const int real = row < rows.count ? row : rows.count - 1;
        shared.facts[row] = with_statistics(facts_of(p, sequence, rows.query_of(real), rows.head_of(real)), statistics);
    };
    static_assert(T::others <= T::threads);

    Accumulators<1, Parts::columns / block_columns> grad_k, grad_v;
    clear(grad_k);
    clear(grad_v);
    if (first_tile < end_tile) {
        const RowTile rows = rows_of(first_tile);
        load_keys(shared.k, p.k);
        load_keys(shared.v, p.v);
        load_rows_of(shared.grad_out, a.gradients.grad_out, rows);
        load_rows_of(shared.q, p.q, rows);
        put_facts(rows, statistics_of(rows));
    }
    for (int tile = first_tile; tile < end_tile; ++tile) {
        const RowTile rows = rows_of(tile);
        const bool more = tile + 1 < end_tile;
        const RowTile next = rows_of(more ? tile + 1 : tile);
        ptx::cp_async_wait<0>();
        __syncthreads();  // q, grad_out and the facts are here
        if (p.scores.drops) shared.kept.make(p.scores, shared.dropout, shared.facts, base, T::threads);
        const TileKeys seen(p.keys, sequence, rows);
        Accumulators<1, T::others / block_columns> x, grad;
        multiply_rows(x, shared.k, warp_key, shared.q);
        multiply_rows(grad, shared.v, warp_key, shared.grad_out);
        const auto kept = [&](int i, int j, int e) {
            const Element<true> at(warp_key, i, j, e);
            return shared.kept(at.row, base + at.key);
        };
        if (p.scores.drops) {
            __syncthreads();  // what is kept is known
            drop(grad, p.scores.kept, kept);
        }
        finish_gradients<true, Storage>(p.scores, shared.facts, warp_key, base,
                                        seen.all.begin <= base && seen.all.end >= base + T::own, true, x, grad);
        if (p.scores.drops) drop(x, 1, kept);
        multiply_weights(grad_v, x, shared.grad_out, first_column);
        __syncthreads();  // everyone is done with grad_out and the facts
        if (more) {
            load_rows_of(shared.grad_out, a.gradients.grad_out, next);
            put_facts(next, statistics_of(next));
        }
        multiply_weights(grad_k, grad, shared.q, first_column);
        __syncthreads();  // everyone is done with q
        if (more) load_rows_of(shared.q, p.q, next);
    }

    // A warp's rows of k and v are read by no other.
    put_rows(shared.k, warp_key, first_column, grad_k, [&](int, int) { return p.scale; });
    put_rows(shared.v, warp_key, first_column, grad_v, [&](int, int) { return p.scores.drops ? p.scores.kept : 1.0f; });
    __syncwarp();
    // Keys past a row's length have gradients too, of zero.
    const std::int64_t last_key = p.keys.cu_seqlens ? sequence.keys.end : p.S;
    const std::int64_t left = last_key - first_key() - warp_key;
    const int count = static_cast<int>(left < fragment_rows ? left : fragment_rows);
    const auto store = [&](const auto& tile, const Vectors<Storage>& tensor) {
        store_rows<std::remove_cvref_t<decltype(tile)>, Storage>(
            tile, tensor.in_chunks, p.D, warp_key, count,
            KeyVector<Storage>{tensor.at(sequence.batch, first_key(), work.kv_head), tensor.time}, first_column,
            Parts::columns);
    };
    store(shared.k, a.grad_k);
    store(shared.v, a.grad_v);
}

// ---- bias ----

// A block owns the elements of grad_bias of one (batch, head), `own` queries and `others` keys, or of all where the
// bias has a stride of 0. Gradients of scores that are added to the same element, or that stand at the same place of
// another tile, are summed in a lane's accumulator, in order; at the end the tile's rows or columns, if shared.
template <class Storage>
struct BiasGradient {
    GradientArguments<Storage> gradients;
    Added grad_bias;
    std::int64_t batches, heads, query_tiles, key_tiles;  // that there are blocks for
};

template <class T>
union BiasShared {
    RowsOwnShared<T> tiles;
    float sums[T::own][T::others];
};

template <class T>
__global__ void __launch_bounds__(T::threads, 1)
    attention_backward_bias_sm80(const __grid_constant__ BiasGradient<typename T::Storage> a) {
    using Storage = typename T::Storage;
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    auto& shared = reinterpret_cast<BiasShared<T>*>(shared_bytes)->tiles;
    auto& total = reinterpret_cast<BiasShared<T>*>(shared_bytes)->sums;
    const auto& p = a.gradients.p;
    const Added& bias = a.grad_bias;
    std::int64_t block = blockIdx.x;
    const std::int64_t own_keys = block % a.key_tiles;
    block /= a.key_tiles;
    const std::int64_t own_queries = block % a.query_tiles;
    block /= a.query_tiles;
    const int own_head = static_cast<int>(block % a.heads);
    const std::int64_t own_batch = block / a.heads;
    const std::int64_t all_queries = divide_up(p.T, T::own), all_keys = divide_up(p.S, T::others);
    const int warp_row = static_cast<int>(threadIdx.x) / warp_lanes * fragment_rows;

    Accumulators<1, T::others / block_columns> sums;
    clear(sums);
    // Adds the tile of a sequence's queries from `first_query` and keys from `first_key` of all, for one head.
    const auto add_tile = [&](std::int64_t index, const Sequence& sequence, int head, std::int64_t first_query,
                              std::int64_t first_key) {
        const auto in_tile = [&](std::int64_t query) {
            const std::int64_t row = query - first_query;
            return static_cast<int>(row < 0 ? 0 : row < T::own ? row : T::own);
        };
        const int begin = in_tile(sequence.queries.begin), end = in_tile(sequence.queries.end);
        if (begin >= end) return;
        const Keys first = keys_of(p.keys, sequence, first_query + begin);
        const Keys last = keys_of(p.keys, sequence, first_query + end - 1);
        const std::int64_t relative = first_key - sequence.keys.begin;
        if (relative >= last.end || relative + T::others <= first.begin || first.begin >= last.end) return;
        const int base = static_cast<int>(relative);
        __syncthreads();  // everyone is done with the tile before
        const auto load = [&](auto& tile, const Vectors<const Storage>& tensor, int from, int to, std::int64_t time,
                              int in_head) {
            load_tile<std::remove_reference_t<decltype(tile)>, T::threads, Storage>(
                tile, tensor.in_chunks, p.D, from, to,
                KeyVector<const Storage>{tensor.at(sequence.batch, time, in_head), tensor.time});
        };
        load(shared.q, p.q, begin, end, first_query, head);
        load(shared.grad_out, a.gradients.grad_out, begin, end, first_query, head);
        load(shared.k, p.k, first.begin - base, last.end - base, first_key, head / p.group);
        load(shared.v, p.v, first.begin - base, last.end - base, first_key, head / p.group);
        ptx::cp_async_commit();
        for (int row = static_cast<int>(threadIdx.x); row < T::own; row += T::threads) {
            RowFacts facts{};  // of a row that sees nothing
            if (row >= begin && row < end) {
                facts = with_statistics(facts_of(p, sequence, first_query + row, head),
                                        a.gradients.statistics_of(sequence.batch, head, first_query + row));
            }
            shared.facts[row] = facts;
        }
        ptx::cp_async_wait<0>();
        __syncthreads();
        Accumulators<1, T::others / block_columns> x, grad;
        multiply_rows(x, shared.q, warp_row, shared.k);
        multiply_rows(grad, shared.grad_out, warp_row, shared.v);
        if (p.scores.drops) {
            const std::uint64_t dropout = dropout_key(p.scores, index);
#pragma unroll 1
            for (int j = 0; j < T::others / block_columns; ++j) {
#pragma unroll 1
                for (int e = 0; e < 4; ++e) {
                    const Element<false> at(warp_row, 0, j, e);
                    const int key = base + at.key;
                    const RowFacts& row = shared.facts[at.row];
                    const bool kept =
                        key >= 0 && kept_words(p.scores, dropout, first_block(key) + key % philox::blocks_per_group,
                                               row.position, row.head) >>
                                            word_of(key) &
                                        1;
                    const float first_grad = kept ? grad[0][0][0] * p.scores.kept : 0;
                    grad[0][0][0] = grad[0][0][1];
                    grad[0][0][1] = grad[0][0][2];
                    grad[0][0][2] = grad[0][0][3];
                    grad[0][0][3] = first_grad;
                }
                turn(grad);
            }
        }
        finish_gradients<false, Storage>(p.scores, shared.facts, warp_row, base, false, false, x, grad);
#pragma unroll
        for (int j = 0; j < T::others / block_columns; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[0][j][e] += grad[0][j][e];
        }
    };
    const auto begin_of = [](std::int64_t blocks, std::int64_t own) { return blocks > 1 ? own : 0; };
    const auto end_of = [](std::int64_t blocks, std::int64_t own, std::int64_t all) {
        return blocks > 1 ? own + 1 : all;
    };
    for (std::int64_t s = 0; s < p.keys.sequences(); ++s) {
        const Sequence sequence = p.keys.sequence(s);
        if (a.batches > 1 && sequence.batch != own_batch) continue;
        for (std::int64_t head = begin_of(a.heads, own_head); head < end_of(a.heads, own_head, p.H); ++head) {
            for (std::int64_t t = begin_of(a.query_tiles, own_queries);
                 t < end_of(a.query_tiles, own_queries, all_queries); ++t) {
                for (std::int64_t k = begin_of(a.key_tiles, own_keys); k < end_of(a.key_tiles, own_keys, all_keys);
                     ++k) {
                    add_tile(s, sequence, static_cast<int>(head), t * T::own, k * T::others);
                }
            }
        }
    }

    __syncthreads();
#pragma unroll
    for (int j = 0; j < T::others / block_columns; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const Element<false> at(warp_row, 0, j, e);
            total[at.row][at.key] = sums[0][j][e];
        }
    }
    __syncthreads();
    int rows = T::own, keys = T::others;
    if (bias.key == 0) {
        keys = 1;
        for (int row = static_cast<int>(threadIdx.x); row < T::own; row += T::threads) {
            float sum = 0;
            for (int key = 0; key < T::others; ++key) sum += total[row][key];
            total[row][0] = sum;
        }
        __syncthreads();
    }
    if (bias.query == 0) {
        rows = 1;
        for (int key = static_cast<int>(threadIdx.x); key < keys; key += T::threads) {
            float sum = 0;
            for (int row = 0; row < T::own; ++row) sum += total[row][key];
            total[0][key] = sum;
        }
        // For who reads the loop below: with one row, each thread reads what it wrote itself, and this is not noticed
        // if removed.
        __syncthreads();
    }
    for (int i = static_cast<int>(threadIdx.x); i < rows * keys; i += T::threads) {
        const int row = i / keys, key = i % keys;
        const std::int64_t in_queries = own_queries * T::own + row, in_keys = own_keys * T::others + key;
        if ((bias.query != 0 && in_queries >= p.T) || (bias.key != 0 && in_keys >= p.S)) continue;
        const std::int64_t at = bias.at(own_batch, own_head, in_queries, in_keys);
        if (bias.is_float32) {
            static_cast<float*>(bias.data)[at] = total[row][key];
        } else {
            static_cast<Storage*>(bias.data)[at] = from_float<Storage>(total[row][key]);
        }
    }
}

}  // namespace

void attention_backward(const attention::Backward& a) {
    with_storage(a.problem.q.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        const GradientArguments<Storage> gradients(a, make_statistics<Storage>(a));
        with_head_dim(a.problem.D, HeadDims<Storage>{}, [&](auto head_dim) {
            using T = GradientSizes<Storage, head_dim()>;
            using K = KeyGradientSizes<Storage, head_dim()>;
            static_assert(sizeof(KeysOwnShared<K>) <= shared_bytes_everywhere);
            static_assert(sizeof(RowsOwnShared<T>) <= shared_bytes_everywhere);
            const KeyGradients<Storage> of_keys{gradients, Tiling<Over::keys>(a.problem, K::own),
                                                Vectors<Storage>(a.grad_k), Vectors<Storage>(a.grad_v)};
            const unsigned parts = ColumnParts<K>::count;
            launch(attention_backward_keys_sm80<K>,
                   {of_keys.tiling.blocks() * parts, K::threads, sizeof(KeysOwnShared<K>)}, of_keys);
            const QueryGradient<Storage> of_queries{gradients, Tiling<Over::rows>(a.problem, T::own),
                                                    Vectors<Storage>(a.grad_q)};
            launch(attention_backward_queries_sm80<T>,
                   {of_queries.tiling.blocks(), T::threads, sizeof(RowsOwnShared<T>)}, of_queries);
        });
    });
}

void attention_bias_backward(const attention::BiasBackward& a) {
    with_storage(a.problem.q.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        const Problem& p = a.problem;
        const GradientArguments<Storage> gradients(a, make_statistics<Storage>(a));
        with_head_dim(p.D, FewHeadDims{}, [&](auto head_dim) {
            using T = GradientSizes<Storage, head_dim()>;
            static_assert(sizeof(BiasShared<T>) <= shared_bytes_everywhere);
            const Added grad_bias(a.grad_bias);
            const BiasGradient<Storage> arguments{gradients,
                                                  grad_bias,
                                                  grad_bias.batch ? p.B : 1,
                                                  grad_bias.head ? p.H : 1,
                                                  grad_bias.query ? divide_up(p.T, T::own) : 1,
                                                  grad_bias.key ? divide_up(p.S, T::others) : 1};
            const std::int64_t blocks =
                arguments.batches * arguments.heads * arguments.query_tiles * arguments.key_tiles;
            launch(attention_backward_bias_sm80<T>, {static_cast<unsigned>(blocks), T::threads, sizeof(BiasShared<T>)},
                   arguments);
        });
    });
}

}  // namespace pygpt::cuda
