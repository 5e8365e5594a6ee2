// Attention of few queries to many keys, for decoding. Contract: ops/attention.h.
//
// 4 · T · S · D operations a head, on 2 · S · D numbers of a kv head's cache: with one query, and a kv head for each
// head, 1 operation a byte in bf16, with 8 heads to a kv head 8, where a card has 150 and more. So reading k and v once
// at the rate of memory is the bound, and the few rows of one sequence must keep a whole device at it.
//
// Keys are therefore cut into splits of 128, counted from the sequence's first key, whatever else is in the batch and
// however large the cache. A block owns a split for 16 rows of a kv head (problem.cuh): the heads that read it, of one
// query after the other. Its warps take the split's tiles of 16 keys in turn, each with copies of its own, a tile ahead
// of the products: no barrier stands in the loop, and 16 to 32 KB of a block are on their way.
//
//     a warp:    x = q · kᵀ;  p = online softmax;  out = out · factor + p · v      (16, D), in float32
//     a block:   Σ over the warps, in order, of out and sum · 2^(maximum - the largest maximum)      -> scratch
//     combine:   the same Σ over the splits that a row sees, in order, divided by the sum            -> out, lse
//
// The second kernel reads 4 · D bytes for each row and split, from L2: with one row 1/128 of what the split's k and v
// take in bf16, with 16 rows 1/8. A row's bits depend on the keys that it sees alone: what is hidden from it adds exact
// zeros, and is passed over where it is hidden from all rows of the block.
#include "cuda/attention/online_softmax.cuh"
#include "cuda/tiles/pack.cuh"

namespace pygpt::cuda {
namespace {

constexpr int split_keys = 128;
constexpr int tile_keys = 16;
constexpr int tile_rows = fragment_rows;
constexpr int combine_threads = 128;

template <class Storage, int head_dim>
struct DecodeSizes : Sizes<Storage, head_dim> {
    using Base = Sizes<Storage, head_dim>;
    static constexpr int warps = Base::row_bytes <= 256 ? 4 : Base::row_bytes <= 512 ? 2 : 1;
    static constexpr int threads = warps * warp_lanes;
    static constexpr int stages = 2;  // of tiles, for each warp
    static_assert(split_keys / tile_keys % warps == 0);
};

// What is known of a row's scores: their maximum, in units of log 2, and the sum of the weights relative to it.
struct Statistics {
    float maximum, sum;
};

// What blocks leave for the second kernel, (splits, B, T, H) with D numbers each.
struct Parts {
    Statistics* statistics;
    float* sums;
    std::int64_t splits;  // of the longest sequence that there may be

    template <class Storage>
    __device__ std::int64_t at(const DeviceProblem<Storage>& p, const BlockRows& own, int row,
                               std::int64_t split) const {
        return ((split * p.keys.batch + own.sequence.batch) * p.T + own.rows.query_of(row)) * p.H +
               own.rows.head_of(row);
    }
};

// Sums of several parts, of a row's columns: each part counts as much less as its maximum is below that of all.
struct Combined {
    float largest = -infinity;
    float sum = 0;
    Floats<4> out{};

    __device__ void see(float maximum) { largest = fmaxf(largest, maximum); }  // all of them, before
    __device__ void add(const Statistics& part, const Floats<4>& columns) {
        const float factor = ptx::exp2_approx(part.maximum - (largest == -infinity ? 0 : largest));
        sum = fmaf(part.sum, factor, sum);
#pragma unroll
        for (int i = 0; i < 4; ++i) out.value[i] = fmaf(columns.value[i], factor, out.value[i]);
    }
};

template <class Storage>
struct DecodeArguments {
    DeviceProblem<Storage> p;
    Tiling<Over::rows> tiling;
    Parts parts;
};

template <class T>
struct DecodeShared {
    using Tile = SharedTile<typename T::Storage, tile_keys, T::head_dim>;
    struct Stage {
        Tile k, v;
    };
    SharedTile<typename T::Storage, tile_rows, T::head_dim> q;
    RowFacts facts[tile_rows];
    BlockRows own;          // here, and not in registers across the loop
    std::uint64_t dropout;  // the key
    Statistics statistics[T::warps][tile_rows];
    union {
        Stage stage[T::warps][T::stages];
        float sums[T::warps][tile_rows * T::head_dim];  // after the last tile
    };

    // Where a row's column stands among a warp's sums: 4 rows' neighbouring columns, and the chunks of 4 of a row, lie
    // in different banks.
    __device__ static int place(int row, int column) { return row * T::head_dim + (column ^ row % 4 * 8); }
};

template <class T>
__global__ void __launch_bounds__(T::threads, 1)
    attention_decode_sm80(const __grid_constant__ DecodeArguments<typename T::Storage> a) {
    using Storage = typename T::Storage;
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    auto& shared = *reinterpret_cast<DecodeShared<T>*>(shared_bytes);
    const auto& p = a.p;
    const auto split = static_cast<int>(blockIdx.x % a.parts.splits);
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    if (warp == 0) {
        const BlockRows rows(p, a.tiling, static_cast<unsigned>(blockIdx.x / a.parts.splits));
        if (lane == 0) shared.own = rows;
    }
    __syncthreads();
    const BlockRows& own = shared.own;
    if (!own.any()) return;
    const TileKeys seen(p.keys, own.sequence, own.rows);
    const Keys keys{seen.any.begin > split * split_keys ? seen.any.begin : split * split_keys,
                    seen.any.end < (split + 1) * split_keys ? seen.any.end : (split + 1) * split_keys};
    if (keys.empty()) return;

    const auto load_keys = [&](auto& tile, const Vectors<const Storage>& tensor, int base) {
        const Storage* const first = tensor.at(own.sequence.batch, own.sequence.keys.begin + base, own.kv_head);
        load_tile<std::remove_reference_t<decltype(tile)>, warp_lanes, Storage>(
            tile, tensor.in_chunks, p.D, keys.begin - base, keys.end - base,
            KeyVector<const Storage>{first, tensor.time});
    };
    // Of the warp's n-th tile in the split; an empty group past the last.
    constexpr int tiles_of_warp = split_keys / tile_keys / T::warps;
    const auto base_of = [&](int n) { return split * split_keys + (n * T::warps + warp) * tile_keys; };
    const auto is_seen = [&](int n) {
        return n < tiles_of_warp && base_of(n) < keys.end && base_of(n) + tile_keys > keys.begin;
    };
    const auto start = [&](int n) {
        if (is_seen(n)) {
            auto& stage = shared.stage[warp][n % T::stages];
            load_keys(stage.k, p.k, base_of(n));
            load_keys(stage.v, p.v, base_of(n));
        }
        ptx::cp_async_commit();
    };
    if (warp == 0) {
        load_tile<decltype(shared.q), warp_lanes, Storage>(shared.q, p.q.in_chunks, p.D, 0, own.rows.count,
                                                           RowVector<const Storage>{p.q, own.sequence.batch, own.rows});
    }
    ptx::cp_async_commit();
    for (int n = 0; n < T::stages - 1; ++n) start(n);
    for (int row = static_cast<int>(threadIdx.x); row < tile_rows; row += T::threads) {
        const int real = row < own.rows.count ? row : own.rows.count - 1;
        shared.facts[row] = facts_of(p, own.sequence, own.rows.query_of(real), own.rows.head_of(real));
    }
    if (threadIdx.x == 0) shared.dropout = dropout_key(p.scores, own.in_sequence);
    ptx::cp_async_wait<T::stages - 1>();
    __syncthreads();  // q, the facts and the key are here

    OnlineSoftmax<1> softmax;
    Accumulators<1, T::head_dim / block_columns> out;
    clear(out);
#pragma unroll 1
    for (int n = 0; n < tiles_of_warp; ++n) {
        // All lanes are done with the stage that is filled next; and below, all lanes' copies of this tile are here.
        // With 16 bits both are not noticed if removed: to the emulated device, ldmatrix brings the lanes of a warp
        // together.
        __syncwarp();
        start(n + T::stages - 1);
        ptx::cp_async_wait<T::stages - 1>();
        __syncwarp();  // in 16 bits not noticed if removed, see above
        if (!is_seen(n)) continue;
        const auto& stage = shared.stage[warp][n % T::stages];
        const int base = base_of(n);
        Accumulators<1, tile_keys / block_columns> x;
        multiply_rows(x, shared.q, 0, stage.k);
        const Keys all_seen{shared.facts[tile_rows - 1].begin, shared.facts[0].end};
        finish_scores<Storage>(p.scores, shared.facts, 0, base,
                               all_seen.begin <= base && all_seen.end >= base + tile_keys, x);
        softmax.step(x, out);
        if (p.scores.drops) {
            const Kept<1, tile_keys / block_columns> kept(p.scores, shared.dropout, shared.facts, 0, base);
            drop(x, 1, kept);
        }
        multiply_weights(out, x, stage.v);
    }
    softmax.finish();
    __syncthreads();  // the sums lie where the stages were

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = 8 * half + lane / 4;
        if (lane % 4 == 0) shared.statistics[warp][row] = {softmax.maximum[0][half], softmax.sum[0][half]};
#pragma unroll
        for (int j = 0; j < T::head_dim / block_columns; ++j) {
            float* const to = shared.sums[warp] + shared.place(row, 8 * j + lane % 4 * 2);
            *reinterpret_cast<float2*>(to) = {out[0][j][2 * half], out[0][j][2 * half + 1]};
        }
    }
    __syncthreads();
    constexpr int chunks = T::head_dim / 4;
    for (int i = static_cast<int>(threadIdx.x); i < own.rows.count * chunks; i += T::threads) {
        const int row = i / chunks;
        const int column = i % chunks * 4;
        if (column >= p.D) continue;
        Combined combined;
#pragma unroll
        for (int w = 0; w < T::warps; ++w) combined.see(shared.statistics[w][row].maximum);
#pragma unroll
        for (int w = 0; w < T::warps; ++w) {
            const float* const sums = shared.sums[w] + shared.place(row, column);
            combined.add(shared.statistics[w][row], load<true, 4>(sums, 4));
        }
        const std::int64_t at = a.parts.at(p, own, row, split);
        if (column == 0) a.parts.statistics[at] = {combined.largest, combined.sum};
        float* const to = a.parts.sums + at * p.D + column;
        if (p.D % 4 == 0) {
            store<true>(to, combined.out, 4);
        } else {
            store<false>(to, combined.out, p.D - column);
        }
    }
}

// ---- Combine ----

template <class Storage>
struct CombineArguments {
    DeviceProblem<Storage> p;
    Tiling<Over::rows> tiling;
    Parts parts;
    Storage* out;  // (B, T, H, D)
    float* lse;    // (B, H, T)
};

template <class Storage, bool packs>
__global__ void __launch_bounds__(combine_threads)
    attention_combine_sm80(const __grid_constant__ CombineArguments<Storage> a) {
    const auto& p = a.p;
    const BlockRows own(p, a.tiling, blockIdx.x);
    if (!own.any()) return;
    const int chunks = (p.D + 3) / 4;
    for (int i = static_cast<int>(threadIdx.x); i < own.rows.count * chunks; i += combine_threads) {
        const int row = i / chunks;
        const int column = i % chunks * 4;
        const std::int64_t query = own.rows.query_of(row);
        const int head = own.rows.head_of(row);
        const Keys keys = keys_of(p.keys, own.sequence, query);
        const int begin = keys.begin / split_keys;
        const int end = keys.empty() ? begin : (keys.end + split_keys - 1) / split_keys;
        Combined combined;
        for (int split = begin; split < end; ++split) {
            combined.see(a.parts.statistics[a.parts.at(p, own, row, split)].maximum);
        }
        for (int split = begin; split < end; ++split) {
            const std::int64_t at = a.parts.at(p, own, row, split);
            combined.add(a.parts.statistics[at], load<packs, 4>(a.parts.sums + at * p.D + column, p.D - column));
        }
        const float by = combined.sum == 0 ? 0 : (p.scores.drops ? p.scores.kept : 1) / combined.sum;
        // + 0, as in put_rows()
#pragma unroll
        for (int e = 0; e < 4; ++e) combined.out.value[e] = fmaf(combined.out.value[e], by, 0.0f);
        const std::int64_t vector = (own.sequence.batch * p.T + query) * p.H + head;
        store<packs>(a.out + vector * p.D + column, combined.out, p.D - column);
        if (column == 0) {
            a.lse[(own.sequence.batch * p.H + head) * p.T + query] =
                combined.sum == 0 ? -infinity : fmaf(combined.largest, ln_2, logf(combined.sum));
        }
    }
}

}  // namespace

void attention_decode(const attention::Forward& a) {
    const Problem& problem = a.problem;
    const std::int64_t splits = divide_up(problem.S, split_keys);
    const auto vectors = static_cast<std::size_t>(splits * problem.B * problem.T * problem.H);
    const Parts parts{scratch<Statistics>(vectors), scratch<float>(vectors * static_cast<std::size_t>(problem.D)),
                      splits};
    const Tiling<Over::rows> tiling(problem, tile_rows);
    with_storage(problem.q.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        with_head_dim(problem.D, HeadDims<Storage>{}, [&](auto head_dim) {
            using T = DecodeSizes<Storage, head_dim()>;
            static_assert(sizeof(DecodeShared<T>) <= shared_bytes_everywhere);
            launch(attention_decode_sm80<T>,
                   {static_cast<unsigned>(splits) * tiling.blocks(), T::threads, sizeof(DecodeShared<T>)},
                   DecodeArguments<Storage>{DeviceProblem<Storage>(problem), tiling, parts});
        });
        auto* const out = static_cast<Storage*>(a.out.data);
        launch(in_packs(4, problem.D, {out}) ? attention_combine_sm80<Storage, true>
                                             : attention_combine_sm80<Storage, false>,
               {tiling.blocks(), combine_threads},
               CombineArguments<Storage>{DeviceProblem<Storage>(problem), tiling, parts, out,
                                         static_cast<float*>(a.lse.data)});
    });
}

}  // namespace pygpt::cuda
