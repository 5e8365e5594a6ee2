// Matrix products by wgmma, of 16-bit numbers on Hopper.                      a (M, K) · b (K, N) -> out (M, N)
//
// A block has a producer, one thread that starts tensor copies, and two consumers, warpgroups of 128 threads that each
// hold sums of (64, 256) in registers: 128 a thread. It stays on its multiprocessor and takes one output tile after the
// other, while the producer runs ahead into the next. K goes in steps of 64 through a ring of 4 stages: `full` says
// that a stage's bytes have landed, `empty` that all who multiply it are done. One group of products is always under
// way while the stage of the group before is given back.
//
// Cooperative: the consumers share a tile of (128, 256), 64 rows each.
// Ping-pong (where an activation is computed): a tile is (64, 256), and the consumers take turns: one multiplies while
// the other activates and stores. Activations cost two operations of the special function unit an element, 16 a clock:
// 2048 clocks a tile, beside 6144 of products at K = 768.
//
// Two blocks whose tiles lie one below the other are a cluster: each loads half of b's stage into both, which so comes
// from L2 once. Tiles go in patches of 8 high, so that what runs at one time reads few different rows and columns.
//
// Operands lie with k along or across their rows; wgmma reads either. An element is summed over k in order, 16 at a
// time, by the same instruction wherever it stands: its bits depend on its row, its column and K, not on the tile's
// shape, the cluster, or which block takes it.
//
// Sums leave in slices of 64 columns: residual and slope are read from global memory, results go through a swizzled
// buffer (stmatrix) and a tensor store, which clips at the edges. Rows that are no multiples of 16 bytes, or that are
// scattered, are stored by the threads.
//
// The floor is 2·M·N·K operations, 4096 a clock and multiprocessor. A stage of the cooperative tile is 1024 clocks of
// products; 48 KB are copied in it, 32 KB of them from L2 in a cluster. Tile, stages and cluster are chosen by such
// counts, not by measurement.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/matmul/activation.cuh"
#include "cuda/matmul/product.h"
#include "cuda/number.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/named_barrier.cuh"
#include "cuda/ptx/proxy_fence.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/ptx/shared_address.cuh"
#include "cuda/ptx/stmatrix.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/tensor_map.h"
#include "cuda/tiles/reduce.cuh"

namespace pygpt::cuda {
namespace {

constexpr int group_threads = 128;  // of a warpgroup
constexpr int consumers = 2;
constexpr int threads = group_threads * (1 + consumers);
constexpr int producer_registers = 24;
constexpr int consumer_registers = 240;  // 24 + 2 · 240 = 3 · 168, what a thread starts with

constexpr int group_m = 64;  // rows of a consumer's sums
constexpr int tile_n = 256;
constexpr int step_k = 64;
constexpr int row_bytes = 128;  // of a step's numbers in shared memory: the widest swizzle
constexpr int stages = 4;
constexpr int patch_height = 8;  // tiles

constexpr int slice_n = 64;  // columns that leave at one time
constexpr int slices = tile_n / slice_n;
constexpr int buffer_bytes = group_m * row_bytes;
constexpr int buffers = 2;  // of a consumer

// Barriers of warps; 0 is __syncthreads.
constexpr int turn_barrier = 1;      // and the next: whose turn it is to multiply
constexpr int consumer_barrier = 3;  // and the next: of a consumer's warps

template <class Storage_, Form form, bool activates_>
struct Traits {
    using Storage = Storage_;
    static constexpr ptx::Major a_major = form == Form::across_across ? ptx::Major::other : ptx::Major::k;
    static constexpr ptx::Major b_major = form == Form::rows_rows ? ptx::Major::k : ptx::Major::other;
    static constexpr bool activates = activates_;
    static constexpr int sharers = activates ? 1 : consumers;  // of a tile
    static constexpr int tile_m = group_m * sharers;
    static constexpr int a_bytes = tile_m * row_bytes;
    static constexpr int b_bytes = tile_n * row_bytes;
    static constexpr int stage_bytes = a_bytes + b_bytes;
    // Of b: boxes are at most 256 rows high, and half of them is a block's share in a cluster.
    static constexpr int b_boxes = b_major == ptx::Major::k ? 2 : tile_n / 64;
};

template <class Traits>
struct alignas(1024) Shared {
    unsigned char stage[stages][Traits::stage_bytes];  // a, then b
    unsigned char buffer[consumers][buffers][buffer_bytes];
    std::uint64_t full[stages];
    std::uint64_t empty[stages];
};

// Addresses of what a block shares.
template <class Traits>
struct Addresses {
    using Layout = Shared<Traits>;
    std::uint32_t base;

    __device__ std::uint32_t a(int stage) const { return base + stage * Traits::stage_bytes; }
    __device__ std::uint32_t b(int stage) const { return a(stage) + Traits::a_bytes; }
    __device__ std::uint32_t buffer(int consumer) const {
        return base + offsetof(Layout, buffer) + consumer * buffers * buffer_bytes;
    }
    __device__ std::uint32_t full(int stage) const { return base + offsetof(Layout, full) + stage * 8; }
    __device__ std::uint32_t empty(int stage) const { return base + offsetof(Layout, empty) + stage * 8; }
};

struct Parameters {
    CUtensorMap a, b;
    CUtensorMap out, pre_activation, activated;  // (part, M, N), where `by_copies`
    int M, N, K;
    int part_k;
    int cluster;        // blocks of one
    int clusters;       // that run
    int tiles;          // of clusters, in all parts
    int rows, columns;  // of clusters' tiles in one part
    Limit m_limit, k_limit;
    bool by_copies;  // results leave by tensor stores
    bool pairs;      // two neighbours of a row may be read or written at a time
    Epilogue epilogue;
};

// ---- Which tiles a block takes ----

// The same of the rows from `first` on.
__device__ inline int limited(const Limit& limit, int first, int most) {
    if (!limit.count) return most;
    const std::int64_t left = *limit.count - limit.first - first;
    return left < 0 ? 0 : left < most ? static_cast<int>(left) : most;
}

struct Tile {
    int part;
    int m, n;
    int k;      // the first
    int steps;  // 0 if no k exists
};

// The tiles of one block, in order; those of a cluster's blocks lie one below the other. Producer and consumers walk
// through the same ones.
template <class Traits>
class Tiles {
  public:
    __device__ explicit Tiles(const Parameters& p)
        : p_(p), M_(limited(p.m_limit, 0, p.M)), at_(static_cast<int>(blockIdx.x) / p.cluster - p.clusters) {}

    __device__ bool next(Tile& tile) {
        int top;
        do {
            at_ += p_.clusters;
            if (at_ >= p_.tiles) return false;
            const int patch = patch_height / p_.cluster;
            const int inside = at_ % (p_.rows * p_.columns);
            const int first = inside / (patch * p_.columns) * patch;
            const int height = p_.rows - first < patch ? p_.rows - first : patch;
            const int in_patch = inside % (patch * p_.columns);
            top = (first + in_patch % height) * p_.cluster * Traits::tile_m;
            tile.part = at_ / (p_.rows * p_.columns);
            tile.n = in_patch / height * tile_n;
        } while (top >= M_);
        tile.m = top + static_cast<int>(blockIdx.x) % p_.cluster * Traits::tile_m;
        tile.k = tile.part * p_.part_k;
        const int left = p_.K - tile.k < p_.part_k ? p_.K - tile.k : p_.part_k;
        tile.steps = (limited(p_.k_limit, tile.k, left) + step_k - 1) / step_k;
        return true;
    }

    __device__ int rows() const { return M_; }

  private:
    const Parameters& p_;
    int M_;
    int at_;  // of clusters' tiles
};

// Where the ring stands: its stage, and the parity of the lap.
struct Place {
    unsigned steps = 0;
    __device__ int stage() const { return static_cast<int>(steps % stages); }
    __device__ unsigned parity() const { return steps / stages % 2; }
};

// ---- The producer ----

template <class Traits>
__device__ void produce(const Addresses<Traits>& shared, const Parameters& p) {
    ptx::tma_prefetch(p.a);
    ptx::tma_prefetch(p.b);
    constexpr int b_box_bytes = Traits::b_bytes / Traits::b_boxes;
    constexpr int b_box_n = tile_n / Traits::b_boxes;
    const int cluster = p.cluster;
    const int rank = static_cast<int>(blockIdx.x) % cluster;
    const auto everybody = static_cast<std::uint16_t>((1 << cluster) - 1);
    Tiles<Traits> tiles(p);
    Tile tile;
    Place place;
    while (tiles.next(tile)) {
        for (int step = 0; step < tile.steps; ++step, ++place.steps) {
            const std::uint32_t full = shared.full(place.stage());
            const std::uint32_t a = shared.a(place.stage());
            const std::uint32_t b = shared.b(place.stage());
            const int k = tile.k + step * step_k;
            ptx::mbarrier_wait_cluster(shared.empty(place.stage()), place.parity() ^ 1);
            ptx::mbarrier_arrive_expect(full, Traits::stage_bytes);
            if constexpr (Traits::a_major == ptx::Major::k) {
                ptx::tma_load(a, p.a, {k, tile.m}, full);
            } else {
                for (int i = 0; i < Traits::sharers; ++i) {
                    ptx::tma_load(a + i * group_m * row_bytes, p.a, {tile.m + i * group_m, k}, full);
                }
            }
            for (int i = rank * Traits::b_boxes / cluster; i < (rank + 1) * Traits::b_boxes / cluster; ++i) {
                const int n = tile.n + i * b_box_n;
                const bool along = Traits::b_major == ptx::Major::k;
                const int at[2] = {along ? k : n, along ? n : k};
                if (cluster == 1) {
                    ptx::tma_load(b + i * b_box_bytes, p.b, at, full);
                } else {
                    ptx::tma_load_multicast(b + i * b_box_bytes, p.b, at, full, everybody);
                }
            }
        }
    }
}

// ---- The consumers: products ----

using Sums = float[tile_n / 2];

// The steps of one tile.
template <class Traits>
__device__ void multiply(Sums& sums, const Addresses<Traits>& shared, Place& place, int steps, int share, int cluster,
                         int thread) {
    using Storage = typename Traits::Storage;
    constexpr int k_of_product = 16;
    constexpr int a_next = Traits::a_major == ptx::Major::k ? k_of_product * 2 : k_of_product * row_bytes;
    constexpr int b_next = Traits::b_major == ptx::Major::k ? k_of_product * 2 : k_of_product * row_bytes;
    const auto give_back = [&](int stage) {
        if (thread >= cluster) return;
        ptx::mbarrier_arrive_cluster(ptx::cluster_address(shared.empty(stage), thread));
    };
    if (steps == 0) {
#pragma unroll
        for (float& sum : sums) sum = 0;
    }
    ptx::pin(sums);
    int last = 0;
    for (int step = 0; step < steps; ++step, ++place.steps) {
        ptx::mbarrier_wait(shared.full(place.stage()), place.parity());
        const std::uint32_t a = shared.a(place.stage()) + share * group_m * row_bytes;
        const std::uint32_t b = shared.b(place.stage());
        ptx::wgmma_fence();
#pragma unroll
        for (int i = 0; i < step_k / k_of_product; ++i) {
            ptx::wgmma<Storage, Traits::a_major, Traits::b_major>(
                sums, ptx::matrix_descriptor<row_bytes, Traits::a_major>(a + i * a_next),
                ptx::matrix_descriptor<row_bytes, Traits::b_major>(b + i * b_next, step_k * row_bytes), step + i > 0);
        }
        ptx::wgmma_commit();
        if (step > 0) {
            ptx::wgmma_wait<1>();
            give_back(last);
        }
        last = place.stage();
    }
    ptx::wgmma_wait<0>();
    ptx::pin(sums);
    if (steps > 0) give_back(last);
}

// ---- The consumers: results ----

// A thread's part of a slice: sums i and i + 1 are neighbours in a row, its columns are 8·(i / 4) + 2·(lane % 4), its
// rows lane / 4 + 8·(i / 2 % 2) of the warp's 16.
constexpr int held = slice_n / 2;
using Slice = float[held];

// Whether what a pair stands for exists, and where.
struct Pairs {
    std::int64_t at[2];  // of the first column, in either row
    bool exists[2];      // the row
    int left;            // columns from the first on
    bool together;       // see Parameters::pairs
};

// Calls f(i, where, whether the second of the pair exists) for the pairs i, i + 1 of a slice that exist.
template <class F>
__device__ void for_pairs(const Pairs& pairs, F&& f) {
#pragma unroll
    for (int i = 0; i < held; i += 2) {
        const int column = i / 4 * 8;
        const int row = i / 2 % 2;
        if (pairs.exists[row] && column < pairs.left) f(i, pairs.at[row] + column, column + 1 < pairs.left);
    }
}

// The same in the product's dtype: element i is sums 2i and 2i + 1.
using Packed = std::uint32_t[held / 2];

template <class Storage>
__device__ float2 unpacked(std::uint32_t pair) {
    Storage both[2];
    memcpy(both, &pair, sizeof pair);
    return {to_float(both[0]), to_float(both[1])};
}

// Reads what a slice stands beside; what does not exist is 0.
__device__ inline void read_slice(Slice& slice, const float* from, const Pairs& pairs) {
#pragma unroll
    for (float& x : slice) x = 0;
    for_pairs(pairs, [&](int i, std::int64_t at, bool second) {
        if (pairs.together) {
            const float2 both = *reinterpret_cast<const float2*>(from + at);
            slice[i] = both.x;
            slice[i + 1] = both.y;
        } else {
            slice[i] = from[at];
            if (second) slice[i + 1] = from[at + 1];
        }
    });
}
template <class Storage>
__device__ void read_slice(Packed& slice, const Storage* from, const Pairs& pairs) {
#pragma unroll
    for (std::uint32_t& pair : slice) pair = 0;
    for_pairs(pairs, [&](int i, std::int64_t at, bool second) {
        if (pairs.together) {
            slice[i / 2] = *reinterpret_cast<const std::uint32_t*>(from + at);
        } else {
            const auto* bits = reinterpret_cast<const std::uint16_t*>(from + at);
            slice[i / 2] = bits[0];
            if (second) slice[i / 2] |= std::uint32_t{bits[1]} << 16;
        }
    });
}

template <class Storage>
__device__ void add_slice(Slice& x, const Either& from, const Pairs& pairs) {
    if (from.float32) {
        Slice more;
        read_slice(more, static_cast<const float*>(from.data), pairs);
#pragma unroll
        for (int i = 0; i < held; ++i) x[i] += more[i];
    } else {
        Packed more;
        read_slice(more, static_cast<const Storage*>(from.data), pairs);
#pragma unroll
        for (int i = 0; i < held; i += 2) {
            const float2 both = unpacked<Storage>(more[i / 2]);
            x[i] += both.x;
            x[i + 1] += both.y;
        }
    }
}

template <class Storage>
__device__ void pack_slice(Packed& to, const Slice& slice) {
#pragma unroll
    for (int i = 0; i < held; i += 2) to[i / 2] = ptx::pack_pair<Storage>(slice[i], slice[i + 1]);
}

// What a consumer writes with: buffers that take turns, and who it is.
struct Writer {
    std::uint32_t buffer;  // the first
    int consumer;
    int thread;  // of the consumer's
    int turn = 0;

    __device__ void together() const { ptx::barrier_sync(consumer_barrier + consumer, group_threads); }

    // Fills the next buffer by fill(address) and stores it, a box of the map at `at`.
    template <class Fill>
    __device__ void store(const CUtensorMap& map, const int (&at)[3], Fill&& fill) {
        const std::uint32_t address = buffer + turn * buffer_bytes;
        turn ^= 1;
        if (thread == 0) ptx::tma_wait_read<buffers - 1>();
        together();
        fill(address);
        ptx::fence_async_shared();
        together();
        if (thread == 0) {
            ptx::tma_store(map, at, address);
            ptx::tma_commit();
        }
    }
};

// Where in a buffer chunk 2i + c of row r lies, c 0 or 1, if i's bits are XORed at bit 5 and up: chunks of 16 bytes are
// swizzled as the maps say, chunk n of row r in the place of n ^ (r % 8).
__device__ inline std::uint32_t chunk_address(std::uint32_t buffer, int r, int c) {
    return buffer + r * row_bytes + ((c ^ r % 8) << 4);
}

// Stores a slice, by tensor stores or by the threads.
__device__ inline void write_slice(Writer& writer, const Slice& slice, float* to, const CUtensorMap& map,
                                   const int (&at)[3], bool by_copies, const Pairs& pairs) {
    if (!by_copies) {
        for_pairs(pairs, [&](int i, std::int64_t place, bool second) {
            if (pairs.together) {
                *reinterpret_cast<float2*>(to + place) = {slice[i], slice[i + 1]};
            } else {
                to[place] = slice[i];
                if (second) to[place + 1] = slice[i + 1];
            }
        });
        return;
    }
    const int lane = writer.thread % warp_lanes;
    const int row = writer.thread / warp_lanes * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        writer.store(map, {at[0] + half * slice_n / 2, at[1], at[2]}, [&](std::uint32_t buffer) {
            const std::uint32_t first = chunk_address(buffer, row, lane % 4 / 2) + lane % 2 * 8;
#pragma unroll
            for (int i = 0; i < held / 2; i += 2) {
                const int from = half * held / 2 + i;
                ptx::store_shared((first ^ i / 4 << 5) + i / 2 % 2 * 8 * row_bytes, slice[from], slice[from + 1]);
            }
        });
    }
}
template <class Storage>
__device__ void write_slice(Writer& writer, const Packed& slice, Storage* to, const CUtensorMap& map,
                            const int (&at)[3], bool by_copies, const Pairs& pairs) {
    if (!by_copies) {
        for_pairs(pairs, [&](int i, std::int64_t place, bool second) {
            if (pairs.together) {
                *reinterpret_cast<std::uint32_t*>(to + place) = slice[i / 2];
            } else {
                auto* bits = reinterpret_cast<std::uint16_t*>(to + place);
                bits[0] = static_cast<std::uint16_t>(slice[i / 2]);
                if (second) bits[1] = static_cast<std::uint16_t>(slice[i / 2] >> 16);
            }
        });
        return;
    }
    const int lane = writer.thread % warp_lanes;
    const int row = writer.thread / warp_lanes * 16 + lane % 16;
    writer.store(map, at, [&](std::uint32_t buffer) {
        const std::uint32_t first = chunk_address(buffer, row, lane / 16);
#pragma unroll
        for (int i = 0; i < held / 2; i += 4) {
            ptx::stmatrix(first ^ i / 4 << 5, {slice[i], slice[i + 1], slice[i + 2], slice[i + 3]});
        }
    });
}

// Activations work on the first few sums of a slice at a time, in a loop that is not unrolled: their code stands there
// once, and does not need registers for all of a slice. What has been worked on goes to the end.
constexpr int together = 4;

template <class F>
__device__ void in_turns(F&& f) {
#pragma unroll 1
    for (int turn = 0; turn < held / together; ++turn) f();
}

template <int by, class Register, int count>
__device__ void rotate(Register (&registers)[count]) {
    Register first[by];
#pragma unroll
    for (int i = 0; i < by; ++i) first[i] = registers[i];
#pragma unroll
    for (int i = 0; i < count - by; ++i) registers[i] = registers[i + by];
#pragma unroll
    for (int i = 0; i < by; ++i) registers[count - by + i] = first[i];
}

// Calls f with the activation as a constant.
template <class F>
__device__ void with_activation(Activation activation, F&& f) {
    switch (activation) {
        case Activation::none:
            return;
        case Activation::gelu:
            return f(std::integral_constant<Activation, Activation::gelu>{});
        case Activation::gelu_tanh:
            return f(std::integral_constant<Activation, Activation::gelu_tanh>{});
        case Activation::relu:
            return f(std::integral_constant<Activation, Activation::relu>{});
    }
}

// One slice: everything that product.h says happens to a sum.
template <class Traits>
__device__ void finish_slice(Writer& writer, Slice& x, const Parameters& p, const int (&at)[3], const Pairs& pairs) {
    using Storage = typename Traits::Storage;
    const Epilogue& e = p.epilogue;
    if (e.bias.data) {
        Pairs of_bias = pairs;
        of_bias.at[0] = of_bias.at[1] = at[0] + writer.thread % 4 * 2;
        add_slice<Storage>(x, e.bias, of_bias);
    }
    if (e.pre_activation) {
        Packed z;
        pack_slice<Storage>(z, x);
        write_slice(writer, z, static_cast<Storage*>(e.pre_activation), p.pre_activation, at, p.by_copies, pairs);
    }
    if constexpr (Traits::activates) {
        if (e.slope_at) {
            Packed z;
            read_slice(z, static_cast<const Storage*>(e.slope_at), pairs);
            with_activation(e.activation, [&](auto activation) {
                in_turns([&] {
#pragma unroll
                    for (int i = 0; i < together; i += 2) {
                        const float2 both = unpacked<Storage>(z[i / 2]);
                        const Activated first = activate_with_slope(activation, both.x);
                        const Activated second = activate_with_slope(activation, both.y);
                        x[i] *= first.slope;
                        x[i + 1] *= second.slope;
                        z[i / 2] = ptx::pack_pair<Storage>(first.value, second.value);
                    }
                    rotate<together>(x);
                    rotate<together / 2>(z);
                });
            });
            if (e.activated) {
                write_slice(writer, z, static_cast<Storage*>(e.activated), p.activated, at, p.by_copies, pairs);
            }
        } else {
            with_activation(e.activation, [&](auto activation) {
                in_turns([&] {
#pragma unroll
                    for (int i = 0; i < together; ++i) x[i] = activate(activation, x[i]);
                    rotate<together>(x);
                });
            });
        }
    }
    if (e.residual.data) add_slice<Storage>(x, e.residual, pairs);
    if (e.out.float32) {
        write_slice(writer, x, static_cast<float*>(e.out.data), p.out, at, p.by_copies, pairs);
    } else {
        Packed out;
        pack_slice<Storage>(out, x);
        write_slice(writer, out, static_cast<Storage*>(e.out.data), p.out, at, p.by_copies, pairs);
    }
}

// A consumer's sums, slice by slice. The loop is not unrolled, or the code of the activations would stand there often.
template <class Traits>
__device__ void finish(Writer& writer, const Sums& sums, const Parameters& p, const Tile& tile, int m, int rows) {
    const Epilogue& e = p.epilogue;
    const int lane = writer.thread % warp_lanes;
    Pairs pairs;
    pairs.together = p.pairs;
    std::int64_t first[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = m + writer.thread / warp_lanes * 16 + lane / 4 + i * 8;
        pairs.exists[i] = row < rows;
        const std::int64_t of_part = std::int64_t{tile.part} * p.M;
        first[i] = pairs.exists[i] ? (of_part + (e.row_of ? e.row_of[row] : row)) * e.pitch : 0;
    }
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
        const int n = tile.n + slice * slice_n;
        if (n >= p.N) return;
        Slice x;
#pragma unroll
        for (int i = 0; i < slices; ++i) {
            if (i != slice) continue;
#pragma unroll
            for (int j = 0; j < held; ++j) x[j] = sums[i * held + j];
        }
        const int column = n + lane % 4 * 2;
        pairs.left = p.N - column;
        pairs.at[0] = first[0] + column;
        pairs.at[1] = first[1] + column;
        finish_slice<Traits>(writer, x, p, {n, m, tile.part}, pairs);
    }
}

template <class Traits>
__device__ void consume(const Addresses<Traits>& shared, const Parameters& p, int consumer, int thread) {
    constexpr bool takes_turns = Traits::sharers == 1;
    const int share = takes_turns ? 0 : consumer;
    Writer writer{shared.buffer(consumer), consumer, thread};
    Tiles<Traits> tiles(p);
    Tile tile;
    Place place;
    if (takes_turns && consumer == 1) ptx::barrier_arrive(turn_barrier, consumers * group_threads);
    for (int i = 0; tiles.next(tile); ++i) {
        if (takes_turns && i % consumers != consumer) {
            place.steps += tile.steps;
            continue;
        }
        Sums sums;
        if (takes_turns) ptx::barrier_sync(turn_barrier + consumer, consumers * group_threads);
        multiply(sums, shared, place, tile.steps, share, p.cluster, thread);
        if (takes_turns) ptx::barrier_arrive(turn_barrier + (1 - consumer), consumers * group_threads);
        finish<Traits>(writer, sums, p, tile, tile.m + share * group_m, tiles.rows());
    }
    if (thread == 0) ptx::tma_wait<0>();
}

template <class Traits>
__global__ void __launch_bounds__(threads, 1) product_sm90_kernel(const __grid_constant__ Parameters p) {
    extern __shared__ unsigned char memory[];
    constexpr std::uint32_t alignment = alignof(Shared<Traits>);
    const Addresses<Traits> shared{(ptx::shared_address(memory) + alignment - 1) / alignment * alignment};
    if (threadIdx.x == 0) {
        for (int i = 0; i < stages; ++i) {
            ptx::mbarrier_init(shared.full(i), 1);
            ptx::mbarrier_init(shared.empty(i), Traits::sharers * p.cluster);
        }
        ptx::mbarrier_init_fence();
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();

    const int group = static_cast<int>(threadIdx.x) / group_threads;
    const int thread = static_cast<int>(threadIdx.x) % group_threads;
    if (group == 0) {
        ptx::setmaxnreg_dec<producer_registers>();
        if (thread == 0) produce(shared, p);
        __syncwarp();
    } else {
        ptx::setmaxnreg_inc<consumer_registers>();
        consume(shared, p, group - 1, thread);
    }
    // The other block may still write here, or arrive at barriers.
    ptx::cluster_arrive();
    ptx::cluster_wait();
}

// ---- Launch ----

template <class Traits>
CUtensorMap operand_map(const Matrix& matrix, DType dtype, ptx::Major major, std::int64_t extent, std::int64_t K,
                        int box) {
    const bool along = major == ptx::Major::k;
    return tensor_map({.data = matrix.data,
                       .dtype = dtype,
                       .dimensions = 2,
                       .extents = {along ? K : extent, along ? extent : K},
                       .strides = {1, matrix.pitch},
                       .box = {64, along ? box : step_k},
                       .swizzle = Swizzle::bytes128});
}

CUtensorMap result_map(const void* data, DType dtype, const Product& p) {
    return tensor_map({.data = data,
                       .dtype = dtype,
                       .dimensions = 3,
                       .extents = {p.N, p.M, p.parts()},
                       .strides = {1, p.epilogue.pitch, p.M * p.epilogue.pitch},
                       .box = {row_bytes / static_cast<int>(bytes_of(dtype)), group_m, 1},
                       .swizzle = Swizzle::bytes128});
}

// Whether tensor copies can write these rows.
bool copies_can(const Epilogue& e, DType dtype) {
    const auto can = [&](const void* data, std::int64_t element_bytes) {
        return !data || (reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && e.pitch * element_bytes % 16 == 0);
    };
    const std::int64_t bytes = bytes_of(dtype);
    return !e.row_of && can(e.out.data, e.out.float32 ? 4 : bytes) && can(e.pre_activation, bytes) &&
           can(e.activated, bytes);
}

bool in_pairs(const Product& p) {
    const Epilogue& e = p.epilogue;
    bool aligned = p.N % 2 == 0 && e.pitch % 2 == 0;
    for (const void* data : {static_cast<const void*>(e.bias.data), static_cast<const void*>(e.pre_activation),
                             e.slope_at, static_cast<const void*>(e.activated),
                             static_cast<const void*>(e.residual.data), static_cast<const void*>(e.out.data)}) {
        aligned &= reinterpret_cast<std::uintptr_t>(data) % 8 == 0;
    }
    return aligned;
}

template <class Traits>
void launch_product(const Product& p) {
    const Epilogue& e = p.epilogue;
    // A cluster of two costs a tile of nothing where their number is odd.
    const std::int64_t tiles_m = divide_up(p.M, Traits::tile_m);
    const int cluster = tiles_m % 2 == 0 || tiles_m > 2 * patch_height ? 2 : 1;
    const std::int64_t rows = divide_up(tiles_m, cluster);
    const std::int64_t columns = divide_up(p.N, tile_n);
    const std::int64_t k_stored = p.k_limit.count ? p.k_limit.stored : p.K;
    const std::int64_t tiles = rows * columns * p.parts();
    const std::int64_t resident = std::max(1, multiprocessors() / cluster);
    Parameters parameters{
        .a = operand_map<Traits>(p.a, p.dtype, Traits::a_major, p.M, k_stored, Traits::tile_m),
        .b = operand_map<Traits>(p.b, p.dtype, Traits::b_major, p.N, k_stored, tile_n / Traits::b_boxes),
        .out = {},
        .pre_activation = {},
        .activated = {},
        .M = static_cast<int>(p.M),
        .N = static_cast<int>(p.N),
        .K = static_cast<int>(p.K),
        .part_k = static_cast<int>(p.part_k == 0 ? p.K : p.part_k),
        .cluster = cluster,
        .clusters = static_cast<int>(std::min(tiles, resident)),
        .tiles = static_cast<int>(tiles),
        .rows = static_cast<int>(rows),
        .columns = static_cast<int>(columns),
        .m_limit = p.m_limit,
        .k_limit = p.k_limit,
        .by_copies = copies_can(e, p.dtype),
        .pairs = in_pairs(p),
        .epilogue = e,
    };
    if (parameters.by_copies) {
        parameters.out = result_map(e.out.data, e.out.float32 ? DType::float32 : p.dtype, p);
        if (e.pre_activation) parameters.pre_activation = result_map(e.pre_activation, p.dtype, p);
        if (e.activated) parameters.activated = result_map(e.activated, p.dtype, p);
    }
    launch(product_sm90_kernel<Traits>,
           {.grid = static_cast<unsigned>(parameters.clusters * cluster),
            .block = threads,
            .shared_bytes = sizeof(Shared<Traits>) + alignof(Shared<Traits>),
            .cluster = static_cast<unsigned>(cluster)},
           parameters);
}

template <class Storage>
void launch_form(const Product& p) {
    const bool activates = p.epilogue.activation != Activation::none || p.epilogue.slope_at;
    switch (p.form) {
        case Form::rows_rows:
            return activates ? launch_product<Traits<Storage, Form::rows_rows, true>>(p)
                             : launch_product<Traits<Storage, Form::rows_rows, false>>(p);
        case Form::rows_across:
            return activates ? launch_product<Traits<Storage, Form::rows_across, true>>(p)
                             : launch_product<Traits<Storage, Form::rows_across, false>>(p);
        case Form::across_across:
            return launch_product<Traits<Storage, Form::across_across, false>>(p);
    }
}

}  // namespace

template <>
void product<90>(const Product& p) {
    if (p.M == 0 || p.N == 0) return;
    if (p.K == 0) return product<80>(p);  // sums of nothing, for which no tensor map can be made
    if (p.dtype == DType::bfloat16) {
        launch_form<bf16>(p);
    } else {
        launch_form<fp16>(p);
    }
}

}  // namespace pygpt::cuda
