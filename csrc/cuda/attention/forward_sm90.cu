// Attention forward on Hopper, by wgmma and tensor copies. Contract: ops/attention.h.
//
// A block takes tiles of a query head's rows, one after the other (hopper.cuh), and walks over the key tiles that these
// see. One warp loads; two or three warpgroups each own 64 rows whole:
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

namespace pygpt::cuda {
namespace {

constexpr float infinity = __builtin_huge_valf();
constexpr float ln_2 = 0.693147180559945309f;

// Sizes by what fits: accumulators of scores and of out, and weights, in the registers of a group; q and two stages of
// k and v in shared memory.
template <class Storage_, int head_dim_>
struct HopperForward {
    using Storage = Storage_;
    static constexpr int head_dim = head_dim_;
    static constexpr int groups = head_dim <= 64 ? 3 : 2;
    static constexpr int rows = groups * group_rows;
    static constexpr int keys = head_dim <= 64 ? 112 : head_dim <= 128 ? 128 : head_dim <= 192 ? 112 : 80;
    static constexpr int stages = 2;
    static constexpr int threads = (1 + groups) * group_threads;
    static constexpr int loading_registers = groups == 2 ? 40 : 32;
    static constexpr int multiplying_registers = groups == 2 ? 232 : 160;
    using RowsTile = SwizzledTile<Storage, rows, head_dim>;
    using KeysTile = SwizzledTile<Storage, keys, head_dim>;
};

template <class Storage>
struct ForwardArguments {
    CUtensorMap q, k, v;
    KeyRange keys;
    Schedule<Over::rows> schedule;
    Scoring scoring;
    Vectors<Storage> out;
    float* lse;
    std::int64_t T, S;
    int H, D, group;  // group: query heads of a kv head
};

template <class T>
struct ForwardShared {
    typename T::RowsTile q;
    typename T::KeysTile k[T::stages], v[T::stages];
    Ring<T::stages> k_ring, v_ring;
    Ring<1> q_ring;  // of q and the item
    SeenKeys seen[T::groups];
    std::uint64_t landed;
    unsigned item;
};

template <class T>
__device__ void load(const ForwardArguments<typename T::Storage>& a, ForwardShared<T>& shared) {
    unsigned items = 0, tiles = 0, hidden = 0;  // so far
    for (unsigned index = blockIdx.x;; index = a.schedule.next()) {
        shared.q_ring.wait_empty(items);
        const bool more = index < a.schedule.items;
        RowsLoads item{};
        if (more) item = RowsLoads(RowsItem::make<T::rows, T::keys>(a, index), a);
        if (ptx::elect_lane()) {
            shared.item = index;
            if (item.tiles > 0) {
                ptx::mbarrier_arrive_expect(shared.q_ring.full(0), T::RowsTile::size);
                shared.q.load(a.q, item.query, item.head, item.batch, shared.q_ring.full(0));
            } else {
                ptx::mbarrier_arrive(shared.q_ring.full(0));
            }
        }
        if (!more) return;
        ++items;
        const int kv_head = item.head / a.group;
        const auto load_v = [&](unsigned n, int key) {
            load_visible(shared.v[n % T::stages], shared.v_ring, n, a.v, item, key, kv_head, shared.landed, hidden);
        };
        int key = item.key;
#pragma unroll 1
        for (const unsigned end = tiles + item.tiles; tiles < end; ++tiles, key += T::keys) {
            load_all(shared.k[tiles % T::stages], shared.k_ring, tiles, a.k, item, key, kv_head);
            if (key > item.key) load_v(tiles - 1, key - T::keys);  // which is needed one tile later
        }
        if (item.tiles > 0) load_v(tiles - 1, key - T::keys);
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
    // Takes the turn that is left.
    __device__ void end() const {
        if (group == 0) wait();
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
        const float high = maximum[half] * o.factor;
        return fabsf(maximum[half]) > o.largest ? high * ln_2 : fmaf(high, ln_2, logf(sum[half]));
    }
};

template <class T>
__device__ void multiply(const ForwardArguments<typename T::Storage>& a, ForwardShared<T>& shared, int group) {
    using Storage = typename T::Storage;
    using KeysTile = typename T::KeysTile;
    const Turn<T::groups> turn{group};
    turn.begin();
    const std::uint32_t q = shared.q.address() + group * group_rows * T::RowsTile::row_bytes;
    SeenKeys& seen = shared.seen[group];

    unsigned before = 0;  // tiles of the items so far
    for (unsigned items = 0;; ++items) {
        shared.q_ring.wait_full(items);
        std::uint32_t index[1] = {shared.item};
        if (index[0] >= a.schedule.items) break;
        // Of the item's tiles this group's rows see any key of [begin, end), and all keys of [whole, whole_end).
        int tiles, begin = 0, end = 0, whole = 0, whole_end = 0;
        {
            const RowsItem item = RowsItem::make<T::rows, T::keys>(a, index[0]);
            const GroupRows own(a.keys, item.all_rows, item.first_row + group * group_rows);
            own.put(seen, a.keys, item.sequence, item.base);
            tiles = item.tiles;
            if (!own.any.empty()) {
                begin = (own.any.begin - item.base) / T::keys;
                end = (own.any.end - item.base + T::keys - 1) / T::keys;
                whole = (own.all.begin - item.base + T::keys - 1) / T::keys;
                whole_end = (own.all.end - item.base) / T::keys;
            }
        }

        // Nobody of this group sees these tiles.
        const auto pass_over = [&](int from, int to) {
#pragma unroll 1
            for (unsigned n = before + from; n < before + to; ++n) {
                turn.wait();
                turn.pass();
                shared.k_ring.wait_full(n);
                shared.k_ring.release(n);
                shared.v_ring.wait_full(n);
                shared.v_ring.release(n);
            }
        };

        float s[T::keys / 2];
        float out[T::head_dim / 2];
        Weights<T::keys / 16> weights;
        RowSoftmax softmax;
        float rescale[2];
#pragma unroll
        for (float& x : out) x = 0;
        const auto start_scores = [&](unsigned n) {
            start_rows<typename T::RowsTile, KeysTile>(s, q, shared.k[n % T::stages].address());
            ptx::wgmma_commit();
        };
        const auto start_out = [&](unsigned n) {
            start_weights<KeysTile>(out, weights, shared.v[n % T::stages].address());
            ptx::wgmma_commit();
        };
        const auto finish_scores = [&](int tile) {
            if (a.scoring.capped) {
#pragma unroll
                for (float& x : s) x = a.scoring.cap(x);
            }
            if (tile < whole || tile >= whole_end) seen.hide(s, tile * T::keys);
            return softmax.step(a.scoring, s, rescale);
        };

        pass_over(0, begin);
        if (begin < end) {
            const unsigned first = before + begin;
            shared.k_ring.wait_full(first);
            turn.wait();
            ptx::pin(s);
            ptx::wgmma_fence();
            start_scores(first);
            turn.pass();
            ptx::wgmma_wait<0>();
            ptx::pin(s);
            shared.k_ring.release(first);
            finish_scores(begin);
            pack<Storage>(weights, s);
        }
#pragma unroll 1
        for (int tile = begin + 1; tile < end; ++tile) {
            const unsigned n = before + tile;
            shared.k_ring.wait_full(n);
            turn.wait();
            ptx::pin(s);
            ptx::wgmma_fence();
            start_scores(n);
            shared.v_ring.wait_full(n - 1);
            ptx::pin(out);
            pin(weights);
            ptx::wgmma_fence();
            start_out(n - 1);
            turn.pass();
            ptx::wgmma_wait<1>();
            ptx::pin(s);
            shared.k_ring.release(n);
            const bool moved = finish_scores(tile);
            ptx::wgmma_wait<0>();
            ptx::pin(out);
            pin(weights);
            shared.v_ring.release(n - 1);
            if (moved) {
#pragma unroll
                for (int i = 0; i < T::head_dim / 2; ++i) out[i] *= rescale[i / 2 % 2];
            }
            pack<Storage>(weights, s);
        }
        shared.q_ring.release(items);
        if (begin < end) {
            const unsigned last = before + end - 1;
            shared.v_ring.wait_full(last);
            ptx::pin(out);
            pin(weights);
            ptx::wgmma_fence();
            start_out(last);
            ptx::wgmma_wait<0>();
            ptx::pin(out);
            shared.v_ring.release(last);
        }
        pass_over(end, tiles);
        before += tiles;

        softmax.finish();
        ptx::pin(index);  // what is made of it again is not kept since
        const RowsItem item = RowsItem::make<T::rows, T::keys>(a, index[0]);
        const RowTile rows(item.all_rows, item.first_row + group * group_rows, group_rows);
        store_sums<Storage>(
            out, a.out.in_chunks, a.D,
            [&](int half) {
                const int row = row_of(half);
                return row < rows.count ? a.out.at(item.sequence.batch, rows.query_of(row), item.head) : nullptr;
            },
            [&](int half) { return softmax.inverse(half); });
        if (threadIdx.x % 4 == 0) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = row_of(half);
                if (row >= rows.count) continue;
                a.lse[(item.sequence.batch * a.H + item.head) * a.T + rows.query_of(row)] =
                    softmax.lse(a.scoring, half);
            }
        }
    }
    turn.end();
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
        ptx::mbarrier_init(ptx::shared_address(&shared.landed), 1);
        ptx::mbarrier_init_fence();
    }
    __syncthreads();
    const int group = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / group_threads, 0);
    if (group == 0) {
        ptx::setmaxnreg_dec<T::loading_registers>();
        if (threadIdx.x < warp_lanes) load<T>(a, shared);
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
            const ForwardArguments<Storage> arguments{map_of<typename T::RowsTile>(q),
                                                      map_or_any<typename T::KeysTile>(for_tensor_copies(p.k), q),
                                                      map_or_any<typename T::KeysTile>(for_tensor_copies(p.v), q),
                                                      p.keys,
                                                      Schedule<Over::rows>(p, T::rows),
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
