// Matrix products by wgmma, of 16-bit numbers on Hopper.                      a (M, K) · b (K, N) -> out (M, N)
//
// A block has a producer, one thread that starts tensor copies, and two consumers, warpgroups of 128 threads that each
// hold sums of (64, tile_n) in registers: of a tile of (128, tile_n) 64 rows each. It stays on its multiprocessor and
// takes one output tile after the other, while the producer runs ahead into the next. K goes in steps of 64 through a
// ring of stages: `full` says that a stage's bytes have landed, `empty` that all who multiply it are done. One group of
// products is always under way while the stage of the group before is given back.
//
// Two blocks whose tiles lie one below the other are a cluster: each loads half of b's stage into both, which so comes
// from L2 once. Tiles go in patches of 8 high, so that what runs at one time reads few different rows and columns.
//
// Operands lie with k along or across their rows; wgmma reads either. An element is summed over k in order, 16 at a
// time, by the same instruction wherever it stands: its bits depend on its row, its column and K, not on the tile's
// shape, the cluster, or which block takes it.
//
// Sums leave in slices of 64 columns. The bias waits in shared memory. What a slice stands beside, a residual or the
// place of a slope, comes by a tensor copy during the products or the slice before; results go through a swizzled
// buffer (stmatrix) and a tensor store, which clips at the edges. Where tensor copies cannot go, because rows are no
// multiples of 16 bytes, or scattered, the threads read and write.
//
// The floor is 2·M·N·K operations, 4096 a clock and multiprocessor. A step of the tile 256 wide is 1024 clocks of
// products; shared memory, 128 bytes a clock, is as busy: 48 KB come in, and each of 8 products reads 10 KB. A narrower
// tile is bound by shared memory, and chosen where it leaves fewer multiprocessors without work (clocks_of). An
// activation takes two operations of the special function unit an element, 16 a clock: 4096 clocks a tile of 256, which
// nothing hides.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/matmul/activation.cuh"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/matmul/product.h"
#include "cuda/number.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/ldmatrix.cuh"
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
constexpr int tile_m = group_m * consumers;
constexpr int step_k = 64;
constexpr int product_k = 16;    // of one instruction
constexpr int row_bytes = 128;   // of a step's numbers in shared memory: the widest swizzle
constexpr int patch_height = 8;  // tiles

constexpr int slice_n = 64;  // columns that leave at one time
constexpr int buffer_bytes = group_m * row_bytes;
constexpr int buffers = 2;  // of a consumer; where something comes by copies the first is for that

// Barriers of warps; 0 is __syncthreads.
constexpr int consumer_barrier = 1;  // and the next: of a consumer's warps

// With an activation: form rows_rows applies it, rows_across multiplies by its slope, beside which there is no bias and
// no pre_activation.
template <class Storage_, Form form, Activation activation_, int tile_n_>
struct Traits {
    using Storage = Storage_;
    static constexpr ptx::Major a_major = form == Form::across_across ? ptx::Major::other : ptx::Major::k;
    static constexpr ptx::Major b_major = form == Form::rows_rows ? ptx::Major::k : ptx::Major::other;
    static constexpr Activation activation = activation_;
    static constexpr bool activates = activation != Activation::none && form == Form::rows_rows;
    static constexpr bool slopes = activation != Activation::none && form == Form::rows_across;
    static constexpr int tile_n = tile_n_;
    static constexpr int slices = tile_n / slice_n;
    static constexpr int a_bytes = tile_m * row_bytes;
    static constexpr int b_bytes = tile_n * row_bytes;
    static constexpr int stage_bytes = a_bytes + b_bytes;
    static constexpr int stages =
        (static_cast<int>(shared_bytes_hopper) - consumers * (buffers * buffer_bytes + tile_n * 4) - 256) / stage_bytes;
    // Of b: boxes are at most 256 rows high, and about half of them is a block's share in a cluster.
    static constexpr int b_boxes = b_major == ptx::Major::k ? 2 : tile_n / 64;
};

template <class Traits>
struct alignas(1024) Shared {
    unsigned char stage[Traits::stages][Traits::stage_bytes];  // a, then b
    unsigned char buffer[consumers][buffers][buffer_bytes];
    float bias[consumers][Traits::tile_n];
    std::uint64_t full[Traits::stages];
    std::uint64_t empty[Traits::stages];
    std::uint64_t beside[consumers];
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
    __device__ std::uint32_t bias(int consumer) const {
        return base + offsetof(Layout, bias) + consumer * Traits::tile_n * 4;
    }
    __device__ std::uint32_t full(int stage) const { return base + offsetof(Layout, full) + stage * 8; }
    __device__ std::uint32_t empty(int stage) const { return base + offsetof(Layout, empty) + stage * 8; }
    __device__ std::uint32_t beside(int consumer) const { return base + offsetof(Layout, beside) + consumer * 8; }
};

enum class Beside { none, slope, residual };

struct Parameters {
    CUtensorMap a, b;
    CUtensorMap out, pre_activation, activated;  // (part, M, N), where `by_copies`
    CUtensorMap beside;                          // where `copied` is not none
    int M, N, K;
    int part_k;
    int cluster;        // blocks of one
    int clusters;       // that run
    int tiles;          // of clusters, in all parts
    int rows, columns;  // of clusters' tiles in one part
    Limit m_limit, k_limit;
    bool by_copies;  // results leave by tensor stores
    Beside copied;   // what comes by tensor copies, if they do
    bool adds;       // to what `out` holds, if by copies: a residual that lies there
    bool pairs;      // two neighbours of a row may be read or written at a time
    Epilogue epilogue;
};

// ---- Which tiles a block takes ----

// How many of a limit's rows there are from `first` on, of `most` that the host says.
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
            top = (first + in_patch % height) * p_.cluster * tile_m;
            tile.part = at_ / (p_.rows * p_.columns);
            tile.n = in_patch / height * Traits::tile_n;
        } while (top >= M_);
        tile.m = top + static_cast<int>(blockIdx.x) % p_.cluster * tile_m;
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
template <int stages>
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
    constexpr int b_box_n = Traits::tile_n / Traits::b_boxes;
    const int cluster = p.cluster;
    const int rank = static_cast<int>(blockIdx.x) % cluster;
    const auto everybody = static_cast<std::uint16_t>((1 << cluster) - 1);
    Tiles<Traits> tiles(p);
    Tile tile;
    Place<Traits::stages> place;
    while (tiles.next(tile)) {
        for (int step = 0; step < tile.steps; ++step, ++place.steps) {
            const std::uint32_t full = shared.full(place.stage());
            const std::uint32_t a = shared.a(place.stage());
            const std::uint32_t b = shared.b(place.stage());
            const int k = tile.k + step * step_k;
            ptx::mbarrier_wait(shared.empty(place.stage()), place.parity() ^ 1);
            ptx::mbarrier_arrive_expect(full, Traits::stage_bytes);
            if constexpr (Traits::a_major == ptx::Major::k) {
                ptx::tma_load(a, p.a, {k, tile.m}, full);
            } else {
                for (int i = 0; i < consumers; ++i) {
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

template <class Traits>
using Sums = float[Traits::tile_n / 2];

// The steps of one tile.
template <class Traits>
__device__ void multiply(Sums<Traits>& sums, const Addresses<Traits>& shared, Place<Traits::stages>& place, int steps,
                         int consumer, int cluster, int thread) {
    using Storage = typename Traits::Storage;
    constexpr int a_next = Traits::a_major == ptx::Major::k ? product_k * 2 : product_k * row_bytes;
    constexpr int b_next = Traits::b_major == ptx::Major::k ? product_k * 2 : product_k * row_bytes;
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
        const std::uint32_t a = shared.a(place.stage()) + consumer * group_m * row_bytes;
        const std::uint32_t b = shared.b(place.stage());
        ptx::wgmma_fence();
#pragma unroll
        for (int i = 0; i < step_k / product_k; ++i) {
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

// The same in the product's dtype: element i is sums 2i and 2i + 1.
using Packed = std::uint32_t[held / 2];

template <class Storage>
__device__ float2 unpacked(std::uint32_t pair) {
    Storage both[2];
    memcpy(both, &pair, sizeof pair);
    return {to_float(both[0]), to_float(both[1])};
}

// What happens to a buffer that has been filled.
enum class Leaves { stored, added, dropped };

// What a consumer writes with: buffers that take turns, and who it is.
struct Writer {
    std::uint32_t first;  // buffer
    int count;            // of buffers: all, or those that copies leave
    int consumer;
    int thread;  // of the consumer's
    int turn = 0;

    __device__ void together() const { ptx::barrier_sync(consumer_barrier + consumer, group_threads); }

    // Fills the next buffer by fill(address), for a box of the map at `at`, once the store before has left it.
    template <class Fill>
    __device__ void store(const CUtensorMap& map, const int (&at)[3], Leaves leaves, Fill&& fill) {
        const std::uint32_t address = first + turn * buffer_bytes;
        if (++turn == count) turn = 0;
        if (thread == 0) {
            if (count == buffers) {
                ptx::tma_wait_read<buffers - 1>();
            } else {
                ptx::tma_wait_read<buffers - 2>();
            }
        }
        together();
        fill(address);
        ptx::fence_async_shared();
        together();
        if (thread > 0) return;
        if (leaves == Leaves::added) {
            ptx::tma_add(map, at, address);
        } else if (leaves == Leaves::stored) {
            ptx::tma_store(map, at, address);
        }
        ptx::tma_commit();
    }
};

// Where in a buffer chunk 2i + c of row r lies, c 0 or 1, if i's bits are XORed at bit 5 and up: chunks of 16 bytes are
// swizzled as the maps say, chunk n of row r in the place of n ^ (r % 8).
__device__ inline std::uint32_t chunk_address(std::uint32_t buffer, int r, int c) {
    return buffer + r * row_bytes + ((c ^ r % 8) << 4);
}

// Stores a slice by copies, or adds it to what is there.
__device__ inline void write_slice(Writer& writer, const Slice& slice, const CUtensorMap& map, const int (&at)[3],
                                   bool adds) {
    const int lane = writer.thread % warp_lanes;
    const int row = writer.thread / warp_lanes * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const Leaves leaves = adds ? Leaves::added : Leaves::stored;
        writer.store(map, {at[0] + half * slice_n / 2, at[1], at[2]}, leaves, [&](std::uint32_t buffer) {
            const std::uint32_t first = chunk_address(buffer, row, lane % 4 / 2) + lane % 2 * 8;
#pragma unroll
            for (int i = 0; i < held / 2; i += 2) {
                const int from = half * held / 2 + i;
                ptx::store_shared((first ^ i / 4 << 5) + i / 2 % 2 * 8 * row_bytes, slice[from], slice[from + 1]);
            }
        });
    }
}

// Stores a slice of 16-bit numbers, four pairs of a thread's at a time: four(i, pairs) sets those from i on.
template <class Four>
__device__ void write_slice(Writer& writer, const CUtensorMap& map, const int (&at)[3], Leaves leaves, Four&& four) {
    const int lane = writer.thread % warp_lanes;
    const int row = writer.thread / warp_lanes * 16 + lane % 16;
    writer.store(map, at, leaves, [&](std::uint32_t buffer) {
        const std::uint32_t first = chunk_address(buffer, row, lane / 16);
#pragma unroll
        for (int i = 0; i < held / 2; i += 4) {
            std::uint32_t pairs[4];
            four(i, pairs);
            ptx::stmatrix(first ^ i / 4 << 5, pairs);
        }
    });
}
template <class Storage>
__device__ void write_rounded(Writer& writer, const Slice& slice, const CUtensorMap& map, const int (&at)[3]) {
    write_slice(writer, map, at, Leaves::stored, [&](int i, std::uint32_t (&pairs)[4]) {
#pragma unroll
        for (int j = 0; j < 4; ++j) pairs[j] = ptx::pack_pair<Storage>(slice[2 * (i + j)], slice[2 * (i + j) + 1]);
    });
}

// What comes by copies: a slice of (64, 64), in one buffer.
class Copied {
  public:
    __device__ Copied(std::uint32_t buffer, std::uint32_t landed) : buffer_(buffer), landed_(landed) {}

    // Starts the copy of the box at `at`; by one thread.
    __device__ void start(const CUtensorMap& map, const int (&at)[3]) const {
        ptx::mbarrier_arrive_expect(landed_, buffer_bytes);
        ptx::tma_load(buffer_, map, at, landed_);
    }

    // Waits for it and reads it. After Writer::together() the next may be started.
    __device__ void read(Packed& to, int thread) {
        ptx::mbarrier_wait(landed_, parity_);
        parity_ ^= 1;
        const int row = thread / warp_lanes * 16 + thread % 16;
        const std::uint32_t first = chunk_address(buffer_, row, thread % warp_lanes / 16);
#pragma unroll
        for (int i = 0; i < held / 2; i += 4) {
            std::uint32_t four[4];
            ptx::ldmatrix(four, first ^ i / 4 << 5);
#pragma unroll
            for (int j = 0; j < 4; ++j) to[i + j] = four[j];
        }
        // Before the next copy comes to what was read. Not noticed if removed: the emulated device wants a fence before
        // asynchronous reads alone.
        ptx::fence_async_shared();
    }

  private:
    std::uint32_t buffer_, landed_;
    unsigned parity_ = 0;
};

// One slice, all by copies: everything that product.h says happens to a sum. `copied` holds what came, `bias` is the
// slice's.
template <class Traits>
__device__ void finish_slice(Writer& writer, Slice& x, const Parameters& p, const int (&at)[3], Packed& copied,
                             std::uint32_t bias) {
    using Storage = typename Traits::Storage;
    constexpr Activation activation = Traits::activation;
    const Epilogue& e = p.epilogue;
    if (!Traits::slopes && e.bias.data) {
        bias += writer.thread % 4 * 8;
#pragma unroll
        for (int i = 0; i < held; i += 4) {
            const float2 both = ptx::load_shared(bias + i * 8);
            x[i] += both.x;
            x[i + 1] += both.y;
            x[i + 2] += both.x;
            x[i + 3] += both.y;
        }
    }
    if (!Traits::slopes && e.pre_activation) write_rounded<Storage>(writer, x, p.pre_activation, at);
    if constexpr (Traits::activates) {
#pragma unroll
        for (float& each : x) each = activate<Precision::of_16_bits>(activation, each);
    }
    if constexpr (Traits::slopes) {
        const Leaves leaves = e.activated ? Leaves::stored : Leaves::dropped;
        write_slice(writer, p.activated, at, leaves, [&](int i, std::uint32_t (&pairs)[4]) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float2 both = unpacked<Storage>(copied[i + j]);
                const Activated first = activate_with_slope<Precision::of_16_bits>(activation, both.x);
                const Activated second = activate_with_slope<Precision::of_16_bits>(activation, both.y);
                x[2 * (i + j)] *= first.slope;
                x[2 * (i + j) + 1] *= second.slope;
                pairs[j] = ptx::pack_pair<Storage>(first.value, second.value);
            }
        });
    } else if (p.copied == Beside::residual) {
#pragma unroll
        for (int i = 0; i < held; i += 2) {
            const float2 more = unpacked<Storage>(copied[i / 2]);
            x[i] = __fadd_rn(x[i], more.x);
            x[i + 1] = __fadd_rn(x[i + 1], more.y);
        }
    }
    if (e.out.float32) {
        write_slice(writer, x, p.out, at, p.adds);
    } else {
        write_rounded<Storage>(writer, x, p.out, at);
    }
}

// A consumer's sums, slice by slice; m is the first row. The first slice's copy has been started.
template <class Traits>
__device__ void finish_by_copies(Writer& writer, Copied& beside, std::uint32_t bias, const Sums<Traits>& sums,
                                 const Parameters& p, const Tile& tile, int m) {
#pragma unroll
    for (int slice = 0; slice < Traits::slices; ++slice) {
        const int n = tile.n + slice * slice_n;
        if (n >= p.N) break;
        Slice x;
#pragma unroll
        for (int i = 0; i < held; ++i) x[i] = sums[slice * held + i];
        Packed copied;
        if (p.copied != Beside::none) {
            beside.read(copied, writer.thread);
            writer.together();
            const int next = n + slice_n;
            if (writer.thread == 0 && slice + 1 < Traits::slices && next < p.N) {
                beside.start(p.beside, {next, m, tile.part});
            }
        }
        finish_slice<Traits>(writer, x, p, {n, m, tile.part}, copied, bias + slice * slice_n * 4);
    }
}

// The same by a thread's own reads and writes, two neighbours at a time: of rows that copies cannot reach, `rows` of
// which exist. Slices are not unrolled, so that the code stands there once.
template <class Traits, bool pairs>
__device__ void finish_by_threads(const Sums<Traits>& sums, const Parameters& p, const Tile& tile, int m, int rows,
                                  int thread) {
    using Storage = typename Traits::Storage;
    Epilogue e = p.epilogue;
    e.activation = Traits::activation;  // as a constant
    if (!Traits::slopes) e.slope_at = nullptr;
    std::uint32_t same[1] = {static_cast<std::uint32_t>(thread)};
    ptx::pin(same);  // what is made of it is not kept during the products
    thread = static_cast<int>(same[0]);
    const int lane = thread % warp_lanes;
    const std::int64_t part = std::int64_t{tile.part} * p.M * e.pitch;
    std::int64_t start[2];  // of this thread's rows
    bool exists[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = m + thread / warp_lanes * 16 + lane / 4 + i * 8;
        exists[i] = row < rows;
        start[i] = exists[i] ? (e.row_of ? e.row_of[row] : row) * e.pitch : 0;
    }
#pragma unroll 1
    for (int slice = 0; slice < Traits::slices; ++slice) {
        Slice x;
#pragma unroll
        for (int i = 0; i < Traits::slices; ++i) {
            if (i != slice) continue;
#pragma unroll
            for (int j = 0; j < held; ++j) x[j] = sums[i * held + j];
        }
#pragma unroll
        for (int i = 0; i < held; i += 2) {
            const int column = tile.n + slice * slice_n + i / 4 * 8 + lane % 4 * 2;
            const int left = p.N - column;
            if (!exists[i / 2 % 2] || left <= 0) continue;
            finish_together<Precision::of_16_bits, pairs, Storage>(e, part, start[i / 2 % 2] + column, left,
                                                                   bias_of<pairs, 2, Storage>(e, column, left),
                                                                   Floats<2>{x[i], x[i + 1]});
        }
    }
}

// The bias of columns n and n + 1; what does not exist is 0.
template <class Storage>
__device__ float2 bias_of_two(const Either& bias, int n, int N) {
    const auto at = [&](int column) {
        if (column >= N) return 0.0f;
        return bias.float32 ? static_cast<const float*>(bias.data)[column]
                            : to_float(static_cast<const Storage*>(bias.data)[column]);
    };
    return {at(n), at(n + 1)};
}

template <class Traits>
__device__ void consume(const Addresses<Traits>& shared, const Parameters& p, int consumer, int thread) {
    const Epilogue& e = p.epilogue;
    const int left = p.copied == Beside::none ? buffers : buffers - 1;
    Writer writer{shared.buffer(consumer) + (buffers - left) * buffer_bytes, left, consumer, thread};
    Copied beside(shared.buffer(consumer), shared.beside(consumer));
    Tiles<Traits> tiles(p);
    Tile tile;
    Place<Traits::stages> place;
    while (tiles.next(tile)) {
        const int m = tile.m + consumer * group_m;
        // What the sums need later is fetched during the products.
        if (p.copied != Beside::none && thread == 0) {
            beside.start(p.beside, {tile.n, m, tile.part});
            for (int n = tile.n + slice_n; n < tile.n + Traits::tile_n; n += slice_n) {
                ptx::tma_prefetch(p.beside, {n, m, tile.part});
            }
        }
        const bool has_bias = !Traits::slopes && p.by_copies && e.bias.data && thread < Traits::tile_n / 2;
        float2 bias{};
        if (has_bias) bias = bias_of_two<typename Traits::Storage>(e.bias, tile.n + 2 * thread, p.N);
        Sums<Traits> sums;
        multiply<Traits>(sums, shared, place, tile.steps, consumer, p.cluster, thread);
        if (!Traits::slopes && p.by_copies && e.bias.data) {
            // The last tile's has been read: a barrier stands after it.
            if (has_bias) ptx::store_shared(shared.bias(consumer) + thread * 8, bias.x, bias.y);
            writer.together();  // not noticed if removed where something is copied: a barrier stands after that too
        }
        if (p.by_copies) {
            finish_by_copies<Traits>(writer, beside, shared.bias(consumer), sums, p, tile, m);
        } else if (p.pairs) {
            finish_by_threads<Traits, true>(sums, p, tile, m, tiles.rows(), thread);
        } else {
            finish_by_threads<Traits, false>(sums, p, tile, m, tiles.rows(), thread);
        }
    }
    if (thread == 0) ptx::tma_wait<0>();
}

template <class Traits>
__global__ void __launch_bounds__(threads, 1) product_sm90_kernel(const __grid_constant__ Parameters p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const Addresses<Traits> shared{ptx::shared_address(memory)};
    if (threadIdx.x == 0) {
        for (int i = 0; i < Traits::stages; ++i) {
            ptx::mbarrier_init(shared.full(i), 1);
            ptx::mbarrier_init(shared.empty(i), consumers * p.cluster);
        }
        for (int i = 0; i < consumers; ++i) ptx::mbarrier_init(shared.beside(i), 1);
        ptx::mbarrier_init_fence();
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();

    const int group = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / group_threads, 0);
    const int thread = static_cast<int>(threadIdx.x) % group_threads;
    if (group == 0) {
        ptx::setmaxnreg_dec<producer_registers>();
        if (thread == 0) produce(shared, p);
        // For the cluster's barrier, which a warp comes to as one; its lanes wait for one another there anyway, so this
        // is not noticed if removed.
        __syncwarp();
    } else {
        ptx::setmaxnreg_inc<consumer_registers>();
        consume(shared, p, group - 1, thread);
    }
    // The other block may still write here, or arrive at barriers.
    ptx::cluster_arrive();
    ptx::cluster_wait();  // what comes late comes seldom: not noticed if removed
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

// Whether the result is added to what is there, in float32.
bool adds_to_out(const Epilogue& e) {
    return e.residual.float32 && e.out.float32 && e.residual.data == e.out.data;
}

// Whether tensor copies can read and write these rows.
bool copies_can(const Epilogue& e, DType dtype) {
    const auto can = [&](const void* data, std::int64_t element_bytes) {
        return !data || (reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && e.pitch * element_bytes % 16 == 0);
    };
    const std::int64_t bytes = bytes_of(dtype);
    const bool beside = !e.residual.data || (e.residual.float32 ? adds_to_out(e) : !e.slope_at);
    return !e.row_of && beside && can(e.out.data, e.out.float32 ? 4 : bytes) && can(e.pre_activation, bytes) &&
           can(e.activated, bytes) && can(e.slope_at, bytes) && can(e.residual.data, bytes);
}

// A cluster of two costs a tile of nothing where their number is odd.
int cluster_of(std::int64_t tiles_high) {
    return tiles_high % 2 == 0 || tiles_high > 2 * patch_height ? 2 : 1;
}

// About how long a launch takes, in clocks: what the multiprocessor with the most tiles spends on products, or on
// filling and reading shared memory for them, and on finishing them.
template <class Traits>
std::int64_t clocks_of(const Product& p) {
    constexpr int bytes_a_clock = 128;
    constexpr int products = consumers * step_k / product_k;
    constexpr int read_bytes = products * (group_m + Traits::tile_n) * product_k * 2;
    constexpr int step_clocks = std::max(4 * Traits::tile_n, (Traits::stage_bytes + read_bytes) / bytes_a_clock);
    constexpr int finish_clocks = Traits::tile_n * (Traits::activates || Traits::slopes ? 28 : 8);
    const std::int64_t high = divide_up(p.M, tile_m);
    const int cluster = cluster_of(high);
    const std::int64_t tiles = divide_up(high, cluster) * divide_up(p.N, Traits::tile_n) * p.parts();
    const std::int64_t steps = divide_up(p.part_k == 0 ? p.K : p.part_k, step_k);
    return divide_up(tiles, std::max(1, multiprocessors() / cluster)) * (steps * step_clocks + finish_clocks);
}

template <class Traits>
void launch_product(const Product& p) {
    const Epilogue& e = p.epilogue;
    const std::int64_t tiles_high = divide_up(p.M, tile_m);
    const int cluster = cluster_of(tiles_high);
    const std::int64_t rows = divide_up(tiles_high, cluster);
    const std::int64_t columns = divide_up(p.N, Traits::tile_n);
    const std::int64_t tiles = rows * columns * p.parts();
    const std::int64_t resident = std::max(1, multiprocessors() / cluster);
    Parameters parameters{
        .a = operand_map<Traits>(p.a, p.dtype, Traits::a_major, p.M, p.k_stored(), tile_m),
        .b = operand_map<Traits>(p.b, p.dtype, Traits::b_major, p.N, p.k_stored(), Traits::tile_n / Traits::b_boxes),
        .out = {},
        .pre_activation = {},
        .activated = {},
        .beside = {},
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
        .copied = Beside::none,
        .adds = e.residual.data && adds_to_out(e),
        .pairs = in_packs(e, 2, p.N),
        .epilogue = e,
    };
    if (parameters.by_copies) {
        parameters.out = result_map(e.out.data, e.out.float32 ? DType::float32 : p.dtype, p);
        if (e.pre_activation) parameters.pre_activation = result_map(e.pre_activation, p.dtype, p);
        if (e.activated) parameters.activated = result_map(e.activated, p.dtype, p);
        if (e.slope_at) {
            parameters.copied = Beside::slope;
        } else if (e.residual.data && !e.residual.float32) {
            parameters.copied = Beside::residual;
        }
        if (parameters.copied != Beside::none) {
            parameters.beside = result_map(e.slope_at ? e.slope_at : e.residual.data, p.dtype, p);
        }
    }
    launch(product_sm90_kernel<Traits>,
           {.grid = static_cast<unsigned>(parameters.clusters * cluster),
            .block = threads,
            .shared_bytes = sizeof(Shared<Traits>),
            .cluster = static_cast<unsigned>(cluster)},
           parameters);
}

// By the tile that takes the least time.
template <class Storage, Form form, Activation activation>
void launch_tile(const Product& p) {
    using Wide = Traits<Storage, form, activation, 256>;
    using Middle = Traits<Storage, form, activation, 192>;
    using Narrow = Traits<Storage, form, activation, 128>;
    const std::int64_t wide = clocks_of<Wide>(p), middle = clocks_of<Middle>(p), narrow = clocks_of<Narrow>(p);
    if (wide <= middle && wide <= narrow) return launch_product<Wide>(p);
    return middle <= narrow ? launch_product<Middle>(p) : launch_product<Narrow>(p);
}

template <class Storage, Form form>
void launch_activation(const Product& p) {
    switch (p.epilogue.activation) {
        case Activation::none:
            return launch_tile<Storage, form, Activation::none>(p);
        case Activation::gelu:
            return launch_tile<Storage, form, Activation::gelu>(p);
        case Activation::gelu_tanh:
            return launch_tile<Storage, form, Activation::gelu_tanh>(p);
        case Activation::relu:
            return launch_tile<Storage, form, Activation::relu>(p);
    }
}

template <class Storage>
void launch_form(const Product& p) {
    switch (p.form) {
        case Form::rows_rows:
            return launch_activation<Storage, Form::rows_rows>(p);
        case Form::rows_across:
            return launch_activation<Storage, Form::rows_across>(p);
        case Form::across_across:
            return launch_tile<Storage, Form::across_across, Activation::none>(p);
    }
}

}  // namespace

template <>
void product<90>(const Product& p) {
    if (p.M == 0 || p.N == 0) return;
    if (p.k_stored() == 0) return product<80>(p);  // sums of nothing, for which no tensor map can be made
    if (p.dtype == DType::bfloat16) {
        launch_form<bf16>(p);
    } else {
        launch_form<fp16>(p);
    }
}

}  // namespace pygpt::cuda
