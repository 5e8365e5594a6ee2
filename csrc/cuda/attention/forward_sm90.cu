// Attention forward on Hopper, by wgmma and tensor copies. Contract: ops/attention.h.
//
// A block takes tiles of a query head's rows, one after the other (hopper.cuh), and walks over the key tiles that these
// see. One warp works out what is needed to know of the next items, one loads, which runs ahead into the next item; two
// or three warpgroups each own 64 rows whole:
//
//     s = q · kᵀ;  p = online softmax;  out = out · factor + p · v
//
// Within a warpgroup the products overlap the softmax: those of the next tile's scores and of this tile's weights are
// started together, and while the second runs, the softmax works on the first. Between warpgroups turns do it: a group
// starts its products when the one before has, so that their softmaxes fall into one another's products. Key tiles that
// a group's rows do not see are passed over.
//
// A row's bits depend on the keys it sees alone: rows of a product do not mix, key tiles count from the sequence's
// first key, and those that are hidden from a row do nothing to it. Hidden keys' values may be anything, and 0 · NaN is
// NaN: the loading warp makes them zeros before anyone multiplies.
//
// Floor, for each score: 4 · D operations of 8192 a cycle and multiprocessor, 1 of 16 exponentials, and of 128 lanes'
// instructions 1 maximum, 1 multiply-add, 1 sum, 1/2 conversion. At D = 64 the first two take 1/16 cycle each.
#include "cuda/attention/hopper.cuh"
#include "cuda/ptx/stmatrix.cuh"
#include "cuda/ptx/tma.cuh"

namespace pygpt::cuda {
namespace {

constexpr int warp_rows = 16;  // of a group's

// Sizes by what fits: accumulators of scores and of out, and weights, in the registers of a group; q, twice if there is
// room, and stages of k and v in shared memory. GPTs' sequences are multiples of 128 keys, of which tiles then waste
// none.
template <class Storage_, int head_dim_>
struct HopperForward {
    using Storage = Storage_;
    static constexpr int head_dim = head_dim_;
    static constexpr int groups = head_dim <= 64 ? 3 : 2;
    static constexpr int rows = groups * group_rows;
    static constexpr int keys = head_dim <= 128 ? 128 : head_dim <= 192 ? 112 : 80;
    static constexpr int q_stages = head_dim <= 128 ? 2 : 1;
    static constexpr int stages = head_dim <= 64 ? 4 : 2;
    static constexpr int item_stages = 2;
    static constexpr bool halves = keys % 32 == 0;  // of key tiles are tiles too
    static constexpr int threads = (1 + groups) * group_threads;
    static constexpr int loading_registers = groups == 2 ? 40 : 32;
    static constexpr int multiplying_registers = groups == 2 ? 232 : 160;
    using RowsTile = SwizzledTile<Storage, rows, head_dim>;
    using KeysTile = SwizzledTile<Storage, keys, head_dim>;
};

// Under a diagonal the longest tiles of a section come first and the shortest last, so that blocks end together: the
// more heads the better, while L2 keeps their keys and values. Without one tiles take equally long, and few at a time
// stay together in what they read; the same of short sequences. Measured, in us, of sections of 32 MB and of two
// rounds, on an H100 80GB HBM3 in bf16, by (B, T, H, D):
//
//     causal  (8, 2048, 16, 64)  168  184    (1, 16384, 16, 64)  1097  1251    (1, 16384, 16, 128)  1692  1857
//             (16, 1024, 12, 64)  89   93    (16, 1024, 25, 64)   183   173    (32, 512, 16, 128)    134   109
//     full    (32, 512, 16, 64)   99   93    (2, 8192, 16, 64)   1107  1082    (8, 2048, 16, 128)    486   436
//
// (1, 16384, 16, 64) in full is slower in two rounds, 2255 for 2129.
inline Sections forward_sections(const Problem& p) {
    constexpr std::int64_t l2_bytes = std::int64_t{50} << 20, short_keys = 1024;
    const std::int64_t bytes = 2 * sizeof(std::uint16_t) * p.B * p.G * p.S * p.D;
    if (bytes <= l2_bytes) return {.bytes = l2_bytes, .rounds = {}};
    const bool causal = p.keys.after < KeyRange::unlimited;
    if (causal && p.S > short_keys) return {.bytes = cached_bytes, .rounds = {}};
    return {.bytes = cached_bytes, .rounds = 2};
}

template <class Storage>
struct ForwardArguments {
    CUtensorMap q, k, v, out;  // out in boxes of a warp's rows
    bool boxes;                // out can be written by tensor copies
    KeyRange keys;
    Schedule<Over::rows> schedule;
    Scoring scoring;
    Vectors<Storage> vectors;  // out's
    float* lse;
    std::int64_t T, S;
    int H, D, group;  // group: query heads of a kv head
};

// Of an item's tiles a group's rows see any key of [begin, end), and all keys of [whole, whole_end). Of the last one
// they may see keys of the first half alone.
struct GroupTiles {
    int begin, end, whole, whole_end;
    bool half;
};

// All that loading and multiplying warps need to know of an item.
template <class T>
struct ForwardItem {
    RowsLoads loads;
    int kv_head;
    bool exists;            // or there are no more
    bool in_boxes;          // out's rows can be stored in boxes of a warp's rows
    int rows;               // that there are
    int low, high, length;  // row r sees keys from low + r to before min(high + r, length), from the first tile's first
    GroupTiles groups[T::groups];
    typename T::Storage* out;  // of row 0
    float* lse;

    // By a whole warp, whose lanes look at the keys that different rows see: the first ones at a group's, the last at
    // the tile's, the one before at all of the sequence.
    __device__ void make(const ForwardArguments<typename T::Storage>& a, unsigned index) {
        constexpr int whole_tile = warp_lanes - 1, whole_sequence = warp_lanes - 2;
        const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
        const Work work = a.schedule.work(index);
        const Sequence sequence = work.none ? Sequence{} : a.keys.sequence(work.sequence);
        if (lane == whole_tile) {
            loads.head = work.kv_head;  // the schedule is one of query heads
            loads.batch = static_cast<int>(sequence.batch);
            kv_head = work.kv_head / a.group;
            exists = true;
        }
        // That is written now, and what it is made of needs no registers below: for that alone, not noticed if removed.
        __syncwarp();
        const std::int64_t first = work.tile * T::rows;
        const bool of_group = lane < T::groups;
        const RowTile seeing({sequence, 0, 1},
                             lane == whole_sequence ? 0
                             : of_group             ? first + lane * group_rows
                                                    : first,
                             lane == whole_sequence ? INT_MAX
                             : of_group             ? group_rows
                                                    : T::rows);
        Keys any{0, 0}, all{0, 0};
        if (seeing.count > 0) {
            const TileKeys seen(a.keys, sequence, seeing);
            any = seen.any;
            all = seen.all;
        }
        const int base = __shfl_sync(all_lanes, any.begin, whole_tile) / T::keys * T::keys;
        const auto tiles_before = [](int keys) { return (keys + T::keys - 1) / T::keys; };
        if (of_group) {
            groups[lane] = any.empty() ? GroupTiles{0, 0, 0, 0, false}
                                       : GroupTiles{(any.begin - base) / T::keys, tiles_before(any.end - base),
                                                    tiles_before(all.begin - base), (all.end - base) / T::keys,
                                                    T::halves && (any.end - base - 1) % T::keys < T::keys / 2};
        } else if (lane == whole_sequence) {
            const int first_key = static_cast<int>(sequence.keys.begin);
            loads.seen.begin = first_key + any.begin;
            loads.seen.end = first_key + any.end < a.S ? first_key + any.end : INT_MAX;
        } else if (lane == whole_tile) {
            loads.query = static_cast<int>(seeing.query);
            loads.key = static_cast<int>(sequence.keys.begin) + base;
            loads.tiles = any.empty() ? 0 : tiles_before(any.end - base);
            rows = seeing.count;
            in_boxes = a.boxes && loads.tiles > 0 && (rows == T::rows || seeing.query + rows == a.T);
            const std::int64_t place = seeing.query + sequence.diagonal - sequence.keys.begin - base;
            low = limited(place - a.keys.before);
            high = limited(place + a.keys.after + 1);
            length = static_cast<int>(sequence.keys.size()) - base;
            out = a.vectors.at(loads.batch, seeing.query, loads.head);
            lse = a.lse + (std::int64_t{loads.batch} * a.H + loads.head) * a.T + seeing.query;
        }
    }

    // Scores of the lane's rows become -inf where they are hidden, in the tile that begins with key `first`.
    template <int scores>
    __device__ void hide(float (&x)[scores], int group, int first) const {
        first += static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = group * group_rows + row_of(half);
            const int end = high + row < length ? high + row : length;
            const unsigned seen = before<scores>(end - first) & ~before<scores>(low + row - first);
#pragma unroll
            for (int j = 0; j < scores / 4; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    if (!(seen & 1u << (2 * j + e))) x[4 * j + 2 * half + e] = -infinity;
                }
            }
        }
    }

  private:
    __device__ static int limited(std::int64_t x) {
        constexpr int far = 1 << 30;
        return x < -far ? -far : x < far ? static_cast<int>(x) : far;
    }
    // Of a lane's columns of a row, 8j and 8j + 1, those before column `end`: bits 2j and 2j + 1.
    template <int scores>
    __device__ static unsigned before(int end) {
        static_assert(scores <= 64);
        const int in_block = end & 7;
        const int count = end <= 0 ? 0 : end / 8 * 2 + (in_block < 2 ? in_block : 2);
        return count < 32 ? (1u << count) - 1 : ~0u;
    }
};

template <class T>
struct ForwardShared {
    typename T::RowsTile q[T::q_stages];
    typename T::KeysTile k[T::stages], v[T::stages];
    Ring<T::q_stages> q_ring;
    Ring<T::stages> k_ring, v_ring;
    Ring<T::item_stages> item_ring;
    ForwardItem<T> items[T::item_stages];
    std::uint64_t landed;
};

// Works out the items, each as soon as all are done with the one whose place it takes; its number is drawn before that.
template <class T>
__device__ void plan(const ForwardArguments<typename T::Storage>& a, ForwardShared<T>& shared) {
    unsigned index = blockIdx.x;
    for (unsigned n = 0;; ++n, index = a.schedule.next()) {
        ForwardItem<T>& item = shared.items[n % T::item_stages];
        shared.item_ring.wait_empty(n);
        const bool exists = index < a.schedule.items;
        if (exists)
            item.make(a, index);
        else
            item.exists = false;
        __syncwarp();  // all lanes have; not noticed if removed: to the emulated device a warp is one agent
        if (ptx::elect_lane()) ptx::mbarrier_arrive(shared.item_ring.full(n));
        if (!exists) return;
    }
}

template <class T>
__device__ void load(const ForwardArguments<typename T::Storage>& a, ForwardShared<T>& shared) {
    unsigned queries = 0, tiles = 0, hidden = 0;  // so far: items with any tile, tiles, those with hidden keys
    for (unsigned items = 0;; ++items) {
        shared.item_ring.wait_full(items);
        const ForwardItem<T>& facts = shared.items[items % T::item_stages];
        if (!facts.exists) return;
        const RowsLoads item = facts.loads;
        const int kv_head = facts.kv_head;
        shared.item_ring.release(items);
        if (item.tiles == 0) continue;
        typename T::RowsTile& q = shared.q[queries % T::q_stages];
        shared.q_ring.wait_empty(queries);
        if (ptx::elect_lane()) {
            ptx::mbarrier_arrive_expect(shared.q_ring.full(queries), T::RowsTile::size);
            q.load(a.q, item.query, item.head, item.batch, shared.q_ring.full(queries));
        }
        ++queries;
        const auto load_v = [&](unsigned n, int key) {
            load_visible(shared.v[n % T::stages], shared.v_ring, n, a.v, item, key, kv_head, shared.landed, hidden);
        };
        int key = item.key;
#pragma unroll 1
        for (const unsigned end = tiles + item.tiles; tiles < end; ++tiles, key += T::keys) {
            load_all(shared.k[tiles % T::stages], shared.k_ring, tiles, a.k, item, key, kv_head);
            if (key > item.key) load_v(tiles - 1, key - T::keys);  // which is needed one tile later
        }
        load_v(tiles - 1, key - T::keys);
    }
}

// The turns of the multiplying groups to start their products.
template <int groups>
struct Turn {
    int group;
    static constexpr int first_id = 1;
    // The first group has its turn at once.
    __device__ void begin() const {
        if (group == groups - 1) pass();
    }
    __device__ void wait() const { ptx::barrier_sync(first_id + group, 2 * group_threads); }
    __device__ void pass() const { ptx::barrier_arrive(first_id + (group + 1) % groups, 2 * group_threads); }
    // Takes the turn that is left, so that a block ends with all barriers as they were.
    __device__ void end() const {
        if (group == 0) wait();  // nothing comes after it: not noticed if removed
    }
};

// The softmax of the lane's two rows, whose scores come tile by tile. A tile of nothing but hidden keys leaves a row as
// it is, to the bit: the maximum stays, the factor is 1, the weights are 0.
struct RowSoftmax {
    float maximum[2] = {-infinity, -infinity};  // of products, or of tangents under a softcap
    float sum[2] = {0, 0};                      // of this lane's columns

    // The factor of a row's products. Where numbers next to one another are a bit or more apart, rounding would make
    // weights of the largest that no 16 bits hold. A power of two, which rounds nothing, then tells the largest from
    // all others.
    __device__ static float factor_of(const Scoring& o, float maximum) {
        float factor = o.factor;
        if (fabsf(maximum) > o.largest) {
            constexpr int bias = 127, mantissa = 23, magnitude = 29;  // maximum · factor: 2^29 to 2^30
            const int exponent = __float_as_int(maximum) >> mantissa & 255;
            const int wanted = 2 * bias + magnitude - exponent;
            factor = __int_as_float((wanted < 2 * bias ? wanted : 2 * bias) << mantissa);
        }
        return factor;
    }

    // Scores become weights (but for the sum they are to be divided by). `rescale` is what sums so far are to be
    // multiplied by; true if it is not 1 for all rows of the warp.
    template <int scores>
    __device__ bool step(const Scoring& o, float (&x)[scores], float (&rescale)[2]) {
        bool moved = false;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float most = maximum[half];
#pragma unroll
            for (int j = 0; j < scores / 4; ++j) {
                most = fmaxf(most, fmaxf(x[4 * j + 2 * half], x[4 * j + 2 * half + 1]));
            }
            most = fmaxf(most, __shfl_xor_sync(all_lanes, most, 1));
            most = fmaxf(most, __shfl_xor_sync(all_lanes, most, 2));
            const float factor = factor_of(o, most);
            const float from = most == -infinity ? 0 : -most * factor;
            const bool moves = most != maximum[half];
            rescale[half] = moves ? ptx::exp2_approx(fmaf(maximum[half], factor, from)) : 1;
            moved |= moves;
            maximum[half] = most;
            float part = 0;
#pragma unroll
            for (int j = 0; j < scores / 4; ++j) {
#pragma unroll
                for (int i = 4 * j + 2 * half; i < 4 * j + 2 * half + 2; ++i) {
                    x[i] = ptx::exp2_approx(fmaf(x[i], factor, from));
                    part += x[i];
                }
            }
            sum[half] = fmaf(sum[half], rescale[half], part);
        }
        return __any_sync(all_lanes, moved);
    }

    // The whole row's sum.
    __device__ void finish() {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            sum[half] += __shfl_xor_sync(all_lanes, sum[half], 1);
            sum[half] += __shfl_xor_sync(all_lanes, sum[half], 2);
        }
    }
    __device__ float inverse(int half) const { return sum[half] == 0 ? 0.0f : 1 / sum[half]; }
    __device__ float lse(const Scoring& o, int half) const {
        if (sum[half] == 0) return -infinity;
        // A sum of NaN stays NaN, whatever the maximum, which may be infinite then.
        const float low = fabsf(maximum[half]) > o.largest ? sum[half] * 0 : logf(sum[half]);
        return fmaf(maximum[half] * o.factor, ln_2, low);
    }
};

// Puts factor[half] · sums, rounded to the dtype, into the warp's rows of a tile, whose first one lies at `rows`. + 0,
// so that a sum of nothing but underflows is +0.
template <class Tile, int sums>
__device__ void put_sums(std::uint32_t rows, const float (&d)[sums], const float (&factor)[2]) {
    using Storage = typename Tile::Storage;
    std::uint32_t thread[1] = {threadIdx.x};
    ptx::pin(thread);  // or what is made of it would keep registers from item to item
    const int lane = static_cast<int>(thread[0]) % warp_lanes;
    // Of four 8 x 8 matrices the lanes name the rows: rows 0 to 7 and 8 to 15 of 8 columns, then of the next 8. Chunks
    // of 16 bytes are swizzled by bits of the row.
    const int row = lane % 16, chunk = lane / 16;
    const int by = row * Tile::row_bytes >> 7 & (Tile::row_bytes / 16 - 1);
    const std::uint32_t to = rows + row * Tile::row_bytes + (chunk ^ by) * 16;
#pragma unroll
    for (int j = 0; j < sums / 8; ++j) {
        std::uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            words[i] = ptx::pack_pair<Storage>(fmaf(d[8 * j + 2 * i], factor[i % 2], 0.0f),
                                               fmaf(d[8 * j + 2 * i + 1], factor[i % 2], 0.0f));
        }
        const int offset = Tile::column_offset(16 * j);
        ptx::stmatrix((to ^ offset % Tile::row_bytes) + offset / Tile::row_bytes * Tile::row_bytes, words);
    }
}

// What a warp has in common, where the compiler can't know that it has.
__device__ inline int uniform(int x) {
    return __shfl_sync(all_lanes, x, 0);
}

template <class T>
__device__ void multiply(const ForwardArguments<typename T::Storage>& a, ForwardShared<T>& shared, int group) {
    using Storage = typename T::Storage;
    using KeysTile = typename T::KeysTile;
    const Turn<T::groups> turn{group};
    turn.begin();
    const int first_row = group * group_rows;  // of an item's
    const int warp = uniform(static_cast<int>(threadIdx.x) % group_threads / warp_lanes);

    unsigned queries = 0, before = 0;  // items with any tile, and tiles of the items, so far
    // Out is written where q was, and q's place is free when that is stored: which is waited for in the next item.
    bool keeps_q = false;
    const auto release_q = [&] {
        if (ptx::elect_lane()) ptx::tma_wait_read<0>();
        if (keeps_q) shared.q_ring.release(queries - 1);
        keeps_q = false;
    };
    for (unsigned items = 0;; ++items) {
        shared.item_ring.wait_full(items);
        const ForwardItem<T>& item = shared.items[items % T::item_stages];
        if (!item.exists) break;
        const int tiles = uniform(item.loads.tiles);
        const int begin = uniform(item.groups[group].begin), end = uniform(item.groups[group].end);
        const bool half = uniform(item.groups[group].half);

        // Nobody of this group sees these tiles. It waits for them, or it might be a lap ahead, and give back a stage
        // for the wrong one: with few tiles that does not happen, and a wait or an arrival is not noticed if removed.
        const auto pass_over = [&](int from, int to) {
#pragma unroll 1
            for (unsigned n = before + from; n < before + to; ++n) {
                turn.wait();
                turn.pass();
                shared.k_ring.wait_full(n);  // not noticed if removed: see above
                shared.k_ring.release(n);    // not noticed if removed: see above
                shared.v_ring.wait_full(n);  // not noticed if removed: see above
                shared.v_ring.release(n);    // not noticed if removed: see above
            }
        };

        float s[T::keys / 2];
        float out[T::head_dim / 2];
        Weights<T::keys / 16> weights;
        RowSoftmax softmax;
        float rescale[2];
#pragma unroll
        for (float& x : out) x = 0;
        const std::uint32_t q = shared.q[queries % T::q_stages].address() + first_row * T::RowsTile::row_bytes;
        const auto finish_scores = [&](auto& x, int tile) {
            constexpr int scores = sizeof x / sizeof *x;
            // In parts, or ptxas would work on all at once, for which there are no registers.
            constexpr int parts = 2, part = scores / parts;
#pragma unroll
            for (int first = 0; first < scores; first += part) {
                std::uint32_t capped[1] = {a.scoring.capped};
                ptx::pin(capped);
                if (capped[0]) {
#pragma unroll
                    for (int i = first; i < first + part; ++i) x[i] = a.scoring.cap(x[i]);
                }
            }
            const GroupTiles& own = item.groups[group];
            if (tile < own.whole || tile >= own.whole_end) item.hide(x, group, tile * T::keys);
            return softmax.step(a.scoring, x, rescale);
        };
        const auto finish_out = [&](unsigned n) {
            ptx::wgmma_wait<0>();
            ptx::pin(out);
            pin(weights);
            shared.v_ring.release(n);
        };
        // Scores and weights of the first tile.
        const auto begin_with = [&](auto& x, auto& to) {
            const unsigned n = before + begin;
            shared.k_ring.wait_full(n);
            turn.wait();
            ptx::pin(x);
            ptx::wgmma_fence();
            start_rows<typename T::RowsTile, KeysTile>(x, q, shared.k[n % T::stages].address());
            ptx::wgmma_commit();
            turn.pass();
            ptx::wgmma_wait<0>();
            ptx::pin(x);
            shared.k_ring.release(n);
            finish_scores(x, begin);
            pack<Storage>(to, x);
        };
        // Those of a further tile, while the one before is finished.
        const auto go_on = [&](auto& x, auto& to, int tile) {
            const unsigned n = before + tile;
            shared.k_ring.wait_full(n);
            turn.wait();
            ptx::pin(x);
            ptx::wgmma_fence();
            start_rows<typename T::RowsTile, KeysTile>(x, q, shared.k[n % T::stages].address());
            ptx::wgmma_commit();
            shared.v_ring.wait_full(n - 1);
            ptx::pin(out);
            pin(weights);
            ptx::wgmma_fence();  // for moves that ptxas makes: PTX has none since the last one, not noticed if removed
            start_weights<KeysTile>(out, weights, shared.v[(n - 1) % T::stages].address());
            ptx::wgmma_commit();
            turn.pass();
            ptx::wgmma_wait<1>();
            ptx::pin(x);
            shared.k_ring.release(n);
            // Both branches wait: before them, ptxas would move the wait up, before the softmax.
            if (finish_scores(x, tile)) {
                finish_out(n - 1);
#pragma unroll
                for (int i = 0; i < T::head_dim / 2; ++i) out[i] *= rescale[i / 2 % 2];
            } else {
                finish_out(n - 1);  // in a last, half tile nothing comes too early after it: not noticed if removed
            }
            pack<Storage>(to, x);
        };
        // The product of the last weights.
        const auto end_with = [&](auto& by) {
            const unsigned n = before + end - 1;
            shared.v_ring.wait_full(n);
            ptx::pin(out);
            pin(by);
            ptx::wgmma_fence();
            start_weights<KeysTile>(out, by, shared.v[n % T::stages].address());
            ptx::wgmma_commit();
            pass_over(end, tiles);
            ptx::wgmma_wait<0>();
            ptx::pin(out);
            pin(by);
            shared.v_ring.release(n);
        };

        if (tiles > 0) shared.q_ring.wait_full(queries);
        pass_over(0, begin);
        const int whole_end = half ? end - 1 : end;
        if (begin < whole_end) begin_with(s, weights);
        if constexpr (T::q_stages > 1) release_q();
#pragma unroll 1
        for (int tile = begin + 1; tile < whole_end; ++tile) go_on(s, weights, tile);
        static_assert(T::q_stages > 1 || !T::halves);
        if (tiles > 0) {
            ++queries;
            keeps_q = true;
            if constexpr (T::q_stages == 1) release_q();
        }
        if (begin < end) {
            if (T::halves && half) {
                constexpr int half_keys = T::halves ? T::keys / 2 : T::keys;
                float half_s[half_keys / 2];
                Weights<half_keys / 16> half_weights;
                if (begin < whole_end) {
                    // Its first fence is not noticed if removed: in PTX nothing moves before it.
                    go_on(half_s, half_weights, whole_end);
                } else {
                    // Nor is this one; and of so few tiles nobody waits for the arrival: not noticed if removed.
                    begin_with(half_s, half_weights);
                }
                end_with(half_weights);
            } else {
                end_with(weights);
            }
        } else {
            pass_over(end, tiles);
        }
        before += tiles;

        softmax.finish();
        const float inverse[2] = {softmax.inverse(0), softmax.inverse(1)};
        if (T::q_stages > 1 && item.in_boxes) {
            // All have multiplied q. Not noticed if removed: to the emulated device a product ends for all four warps.
            ptx::barrier_sync(Turn<T::groups>::first_id + T::groups + group, group_threads);
            const std::uint32_t own = q + warp * warp_rows * T::RowsTile::row_bytes;
            put_sums<typename T::RowsTile>(own, out, inverse);
            ptx::fence_async_shared();
            __syncwarp();  // all lanes have; not noticed if removed: to the emulated device a warp is one agent
            if (ptx::elect_lane()) {
#pragma unroll
                for (int block = 0; block < T::RowsTile::blocks; ++block) {
                    ptx::tma_store<4>(
                        a.out,
                        {block * T::RowsTile::block_columns, item.loads.query + first_row + warp * warp_rows,
                         item.loads.head, item.loads.batch},
                        own + block * T::RowsTile::block_bytes);
                }
                ptx::tma_commit();
            }
        } else {
            store_sums<Storage>(
                out, a.vectors.in_chunks, a.D,
                [&](int half) {
                    const int row = first_row + row_of(half);
                    return row < item.rows ? item.out + row * a.vectors.time : nullptr;
                },
                [&](int half) { return inverse[half]; });
        }
        if (threadIdx.x % 4 == 0) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = first_row + row_of(half);
                if (row < item.rows) item.lse[row] = softmax.lse(a.scoring, half);
            }
        }
        shared.item_ring.release(items);
    }
    turn.end();
    release_q();  // nobody waits for the arrival, which is not noticed if removed
}

template <class T>
__global__ void __launch_bounds__(T::threads, 1)
    attention_forward_sm90(const __grid_constant__ ForwardArguments<typename T::Storage> a) {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    auto& shared = *reinterpret_cast<ForwardShared<T>*>(shared_bytes);
    if (threadIdx.x == 0) {
        constexpr int warps = T::groups * 4;
        shared.k_ring.init(warps);
        shared.v_ring.init(warps);
        shared.q_ring.init(warps);
        shared.item_ring.init(warps + 1);  // and the one that loads
        ptx::mbarrier_init(ptx::shared_address(&shared.landed), 1);
        ptx::mbarrier_init_fence();
    }
    __syncthreads();
    const int group = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / group_threads, 0);
    if (group == 0) {
        ptx::setmaxnreg_dec<T::loading_registers>();
        const int warp = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / warp_lanes, 0);
        if (threadIdx.x == 0) {
            ptx::tma_prefetch(a.q);
            ptx::tma_prefetch(a.k);
            ptx::tma_prefetch(a.v);
        }
        if (warp == 0) load<T>(a, shared);
        if (warp == 1) plan<T>(a, shared);
    } else {
        ptx::setmaxnreg_inc<T::multiplying_registers>();
        multiply<T>(a, shared, group - 1);
    }
}

}  // namespace

void attention_forward_sm90(const attention::Forward& a) {
    with_16_bits(a.problem.q.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        with_head_dim(a.problem.D, HopperHeadDims{}, [&](auto head_dim) {
            using T = HopperForward<Storage, head_dim()>;
            static_assert(sizeof(ForwardShared<T>) <= shared_bytes_hopper);
            const Problem& p = a.problem;
            if (p.B == 0 || p.T == 0) return;
            const TensorView q = for_tensor_copies(p.q);
            const auto out = as_it_is(a.out);
            const ForwardArguments<Storage> arguments{map_of<typename T::RowsTile>(q),
                                                      map_or_any<typename T::KeysTile>(for_tensor_copies(p.k), q),
                                                      map_or_any<typename T::KeysTile>(for_tensor_copies(p.v), q),
                                                      map_of<typename T::RowsTile>(out.value_or(q), warp_rows),
                                                      out.has_value(),
                                                      p.keys,
                                                      Schedule<Over::rows>(p, T::rows, forward_sections(p)),
                                                      Scoring(p),
                                                      Vectors<Storage>(a.out),
                                                      static_cast<float*>(a.lse.data),
                                                      p.T,
                                                      p.S,
                                                      static_cast<int>(p.H),
                                                      static_cast<int>(p.D),
                                                      static_cast<int>(p.H / p.G)};
            launch(attention_forward_sm90<T>, {arguments.schedule.blocks, T::threads, sizeof(ForwardShared<T>)},
                   arguments);
        });
    });
}

}  // namespace pygpt::cuda
