// Attention backward on Hopper in one kernel, with turns.
//
// A block takes key tiles, one after the other (hopper.cuh), and walks over the rows that see one, query heads of the
// kv head included, from the last row tile to the first. Scores stand transposed in the accumulators, keys down and
// rows across, which so are operands of the sums of grad_k and grad_v; gradients of the scores also go through shared
// memory, where keys are the k of the product that is grad_q's part of this key tile. Two warps beside the loading one
// add it to grad_q in float32, scratch memory of (B, H, T, D), by bulk copies that add in L2; another kernel then
// rounds it.
//
// The sum must have an order: to a row tile the key tiles add in theirs, each when the one before has (`turns`). Key
// tiles are also taken in this order by whoever is free, and done by a block in this order, so that one waits for
// earlier ones alone: the first of those that are not done waits for none, and there is no deadlock. All walk the same
// way, so that blocks of a head's neighbouring tiles, begun together, fall apart by the time of one addition, and from
// then on find their turn come. Under a causal diagonal the tiles of the most rows come first, and blocks end together.
//
// Floor: 10 · T · S · D operations a head, which are what is done. grad_q goes through L2 in float32, once for each key
// tile that a row tile sees.
//
// Hidden memory may be anything, and 0 · NaN is NaN: rows past a sequence's end and keys that none of its queries sees
// are made zeros by the loading warp.
#ifndef PYGPT_CUDA_ATTENTION_BACKWARD_FUSED_SM90_CUH
#define PYGPT_CUDA_ATTENTION_BACKWARD_FUSED_SM90_CUH

#include "cuda/attention/backward_sm90.cuh"
#include "cuda/ptx/load.cuh"
#include "cuda/ptx/stmatrix.cuh"
#include "cuda/ptx/turn.cuh"

namespace pygpt::cuda {
namespace {

template <class Storage, int head_dim>
struct HopperFused : HopperBackward<Storage, head_dim> {
    using Base = HopperBackward<Storage, head_dim>;
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
    using GradientsTile = SwizzledTile<Storage, Base::own, group_rows>;  // of scores, keys down
};

template <class Storage>
struct FusedArguments : GradientArguments<Storage> {
    Schedule<Over::keys> schedule;
    Vectors<Storage> grad_k, grad_v;
    float* grad_q;         // (B, H, slots, parts, sums / 4, thread, 4)
    std::uint32_t* turns;  // (B, H, slots, parts): 1 + the last key tile that added
    int slots;
};

// A tile of keys, as all warps of the block read it.
struct FusedItem {
    bool more;
    int batch, kv_head, tile;
    int key, base;           // of the tile's first key: in the tensor, and in its sequence
    int key_end;             // in the tensor
    int query, queries;      // of the sequence
    int first_tile, tiles;   // row tiles that see the keys, of each query head
    int before, before_end;  // those that see the key tile before
    int seen, seen_end;      // of the tile's keys by any query
    int slot;                // of the sequence's first row tile

    template <class T, class Arguments>
    __device__ static FusedItem make(const Arguments& a, unsigned index) {
        FusedItem item{};
        if (index >= a.schedule.items) return item;
        item.more = true;
        const Work work = a.schedule.work(index);
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
        tiles_of(item.key - T::own, item.before, item.before_end);
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
    unsigned loaded = 0, landed = 0;  // so far
    for (unsigned items = 0;; ++items) {
        const FusedItem item = FusedItem::make<T>(a, a.schedule.next_from_first());
        shared.own_ring.wait_empty(items);
        const std::uint32_t full = shared.own_ring.full(0);
        const bool hides = item.tiles > 0 && (item.seen > 0 || item.seen_end < T::own);
        if (hides) {
            const std::uint32_t barrier = ptx::shared_address(&shared.landed);
            if (ptx::elect_lane()) {
                ptx::mbarrier_arrive_expect(barrier, 2 * T::OwnTile::size);
                shared.k.load(a.k, item.key, item.kv_head, item.batch, barrier);
                shared.v.load(a.v, item.key, item.kv_head, item.batch, barrier);
            }
            ptx::mbarrier_wait(barrier, landed++ % 2);
            for (auto* const tile : {&shared.k, &shared.v}) {
                tile->clear_rows(0, item.seen < T::own ? item.seen : T::own);
                tile->clear_rows(item.seen_end > 0 ? item.seen_end : 0, T::own);
            }
            ptx::fence_async_shared();  // load_rows may come to another one in time: not noticed if removed
            __syncwarp();  // all lanes have; not noticed if removed: to the emulated device a warp is one agent
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
        const int last_tile = item.first_tile + item.tiles - 1;
        int head = item.kv_head * a.group, tile = last_tile, half = 0;
#pragma unroll 1
        for (const unsigned end = loaded + item.tiles * a.group * T::halves; loaded < end; ++loaded) {
            const int row = tile * T::rows + half * group_rows;
            load_rows(a, shared, loaded, item.batch, head, item.query + row, item.queries - row, landed);
            if (++half < T::halves) continue;
            half = 0;
            if (--tile < item.first_tile) tile = last_tile, ++head;
        }
    }
}

// Adds a group's parts of grad_q to what the key tiles before this one have added.
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
        const int last_tile = item.first_tile + item.tiles - 1;
        int head = item.kv_head * a.group, tile = last_tile;
#pragma unroll 1
        for (const unsigned end = n + item.tiles * a.group; n < end; ++n) {
            const std::int64_t place =
                ((std::int64_t{item.batch} * a.H + head) * a.slots + item.slot + tile) * T::parts + part;
            const bool adds = tile >= item.before && tile < item.before_end;
            if (ptx::elect_lane()) {
                std::uint32_t* const turn = a.turns + place;
                float* const to = a.grad_q + place * T::part_floats;
                const std::uint32_t from = ptx::shared_address(shared.grad_q[part][Ring<T::buffers>::stage(n)]);
                if (adds) {
                    while (ptx::load_acquire(turn) != static_cast<unsigned>(item.tile)) {
                    }
                    // What others added was fenced as it arrived. Not noticed if removed: a copy's own fence at its end
                    // is enough where only copies touch the sums, if the manual is read to the letter.
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
                ptx::tma_wait<0>();  // the sums must have arrived, and then are fenced, before others may add
                ptx::store_release(turn, static_cast<unsigned>(item.tile) + 1);
            }
            if (--tile < item.first_tile) tile = last_tile, ++head;
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
            ptx::wgmma_fence();  // for moves that ptxas makes: where PTX has none, not noticed if removed
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
            __syncwarp();  // all lanes have; not noticed if removed: to the emulated device a warp is one agent
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
            // The fences are for moves that ptxas makes: where PTX has none, one is not noticed if removed.
            ptx::wgmma_fence();
            start_rows<OwnTile, RowsTile>(x, own[0], rows_q);
            ptx::wgmma_commit();
            if constexpr (follows) {
                ptx::wgmma_wait<1>();
                finish_sums();
                shared.rows_ring.release(n - 1);
            }
            ptx::wgmma_fence();  // not noticed if removed: see above
            start_rows<OwnTile, RowsTile>(grad, own[1], rows_grad_out);
            ptx::wgmma_commit();
            // Where work on x comes later, the wait for grad stands before that: this is then not noticed if removed.
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
            if (half == 0) shared.gradients_ring.wait_empty(tile);  // in a first lap not noticed if removed
            const std::uint32_t to = shared.gradients[tile % 2][half].address() + gradients_at;
#pragma unroll
            for (int j = 0; j < group_rows / 16; ++j) ptx::stmatrix(to ^ 32 * j, gradients[j]);
            if (half == T::halves - 1) {
                ptx::fence_async_shared();
                __syncwarp();  // all lanes have; not noticed if removed: to the emulated device a warp is one agent
                if (ptx::elect_lane()) ptx::mbarrier_arrive(shared.gradients_ring.full(tile));
            }
            if constexpr (finishes) start_grad_q(tile - 1);
            ptx::pin(grad_k);
            ptx::pin(grad_v);
            pin(gradients);
            ptx::wgmma_fence();  // not noticed if removed: see above
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
    attention_backward_fused_sm90(const __grid_constant__ FusedArguments<typename T::Storage> a) {
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
        ptx::setmaxnreg_dec<loading_registers>();
        const int warp = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / warp_lanes, 0);
        if (warp == 0) {
            load<T>(a, shared);
        } else if (warp <= T::parts) {
            add<T>(a, shared, warp - 1);
        }
    } else {
        ptx::setmaxnreg_inc<multiplying_registers>();
        multiply<T>(a, shared, group - 1);
    }
}

// ---- grad_q, rounded ----

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

// ---- host ----

template <class Storage, int head_dim>
void backward_in_one(const attention::Backward& a, const GradientInputs& inputs) {
    using T = HopperFused<Storage, head_dim>;
    static_assert(sizeof(FusedShared<T>) <= shared_bytes_hopper);
    const Problem& p = a.problem;
    const auto slots = static_cast<int>(divide_up(p.T, T::rows) + (p.keys.cu_seqlens ? p.keys.documents : 0));
    const auto places = static_cast<std::size_t>(p.B * p.H * slots);
    auto* const turns = scratch<std::uint32_t>(places * T::parts);
    auto* const grad_q = scratch<float>(places * T::parts * T::part_floats);
    clear(turns, places * T::parts * sizeof *turns);
    const auto arguments = gradient_arguments<Storage, typename T::RowsTile, typename T::OwnTile>(p, inputs);
    const FusedArguments<Storage> fused{arguments,
                                        Schedule<Over::keys>(p, T::own),
                                        Vectors<Storage>(a.grad_k),
                                        Vectors<Storage>(a.grad_v),
                                        grad_q,
                                        turns,
                                        slots};
    launch(attention_backward_fused_sm90<T>, {fused.schedule.blocks, block_threads, sizeof(FusedShared<T>)}, fused);
    const RoundArguments<Storage> rounding{p.keys,
                                           grad_q,
                                           turns,
                                           Vectors<Storage>(a.grad_q),
                                           static_cast<int>(p.H),
                                           static_cast<int>(p.D),
                                           slots,
                                           static_cast<float>(p.scale)};
    launch(attention_grad_q_sm90<T>, {static_cast<unsigned>(places), T::parts * group_threads}, rounding);
}

}  // namespace
}  // namespace pygpt::cuda

#endif
