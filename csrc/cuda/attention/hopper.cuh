// What attention's kernels for Hopper share: tensors as tensor copies take them, which part a block works on next, the
// places in rings of tiles, and a warpgroup's products.
//
// A block is a warpgroup that loads (few of its warps work) and two or three that multiply, each 64 rows of its own.
// Tiles travel through rings in shared memory: a barrier says that a stage is full, another that all warps that
// multiply are done with it. Accumulators lie as ptx/wgmma.cuh says: of a warp's 16 rows lane (g, q) has row g in
// elements with index / 2 even, row g + 8 in the others; column 8 · (index / 4) + 2q + index % 2.
#ifndef PYGPT_CUDA_ATTENTION_HOPPER_CUH
#define PYGPT_CUDA_ATTENTION_HOPPER_CUH

#include <climits>

#include "cuda/attention/problem.cuh"
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/elect.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/named_barrier.cuh"
#include "cuda/ptx/proxy_fence.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/tensor_map.h"
#include "cuda/tiles/reduce.cuh"
#include "cuda/tiles/swizzled_tile.cuh"

namespace pygpt::cuda {
namespace {

constexpr int group_threads = 4 * warp_lanes;  // of a warpgroup
constexpr int group_rows = 64;                 // of its accumulators

// ---- host: tensors ----

using HopperHeadDims = std::integer_sequence<int, 64, 96, 128, 192, 256>;

template <class F>
void with_16_bits(DType dtype, F&& f) {
    if (dtype == DType::bfloat16) {
        f(bf16{});
    } else {
        f(fp16{});
    }
}

constexpr std::int64_t chunk_elements = 8;  // 16 bytes of 16-bit numbers, the unit of tensor copies

struct CopyArguments {
    Vectors<const std::uint16_t> from;
    std::uint16_t* to;  // (batch, time, heads, width), contiguous
    std::int64_t time, heads, chunks;
    int D, width;
};

constexpr int copy_threads = 256;

__global__ void __launch_bounds__(copy_threads) attention_copy_sm90(const __grid_constant__ CopyArguments a) {
    const std::int64_t chunk = std::int64_t{blockIdx.x} * copy_threads + threadIdx.x;
    if (chunk >= a.chunks) return;
    const std::int64_t in_vector = a.width / chunk_elements;
    const std::int64_t vector = chunk / in_vector;
    const int column = static_cast<int>(chunk % in_vector * chunk_elements);
    const std::uint16_t* const from =
        a.from.at(vector / a.heads / a.time, vector / a.heads % a.time, vector % a.heads) + column;
    for (int i = 0; i < chunk_elements; ++i) {
        a.to[chunk * chunk_elements + i] = column + i < a.D ? from[i] : std::uint16_t{0};
    }
}

// A tensor (batch, time, heads, D) as tensor copies may read and write it; none where addresses are no multiples of 16
// bytes, or vectors lie on one another.
inline std::optional<TensorView> as_it_is(const TensorView& tensor) {
    TensorView out = tensor;
    bool fits = reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0 && tensor.shape[3] % chunk_elements == 0;
    for (int i = 0; i < 3; ++i) {
        if (tensor.shape[i] == 1) {
            out.strides[i] = chunk_elements;  // whatever it was
        } else {
            fits &= tensor.strides[i] % chunk_elements == 0 && tensor.strides[i] > 0;
        }
    }
    return fits || elements(tensor) == 0 ? std::optional(out) : std::nullopt;
}

// A tensor (batch, time, heads, D) that tensor copies can read, with the same values: itself, or, where that can't be,
// a copy with columns of zeros. So bits do not depend on strides.
inline TensorView for_tensor_copies(const TensorView& tensor) {
    if (const auto same = as_it_is(tensor)) return *same;
    TensorView out = tensor;
    const std::int64_t width = divide_up(tensor.shape[3], chunk_elements) * chunk_elements;
    out.shape[3] = width;
    out.strides[3] = 1;
    out.strides[2] = width;
    out.strides[1] = width * tensor.shape[2];
    out.strides[0] = out.strides[1] * tensor.shape[1];
    auto* to = scratch<std::uint16_t>(static_cast<std::size_t>(out.strides[0] * tensor.shape[0]));
    out.data = to;
    const std::int64_t chunks = out.strides[0] * tensor.shape[0] / chunk_elements;
    launch(attention_copy_sm90, {static_cast<unsigned>(divide_up(chunks, copy_threads)), copy_threads},
           CopyArguments{Vectors<const std::uint16_t>(tensor), to, tensor.shape[1], tensor.shape[2], chunks,
                         static_cast<int>(tensor.shape[3]), static_cast<int>(width)});
    return out;
}

// The map of a tensor from for_tensor_copies, in boxes that are the blocks of a Tile, or so many of their rows.
template <class Tile>
CUtensorMap map_of(const TensorView& t, int rows = Tile::rows) {
    return tensor_map({t.data,
                       t.dtype,
                       4,
                       {t.shape[3], t.shape[1], t.shape[2], t.shape[0]},
                       {1, t.strides[1], t.strides[2], t.strides[0]},
                       {Tile::block_columns, rows, 1, 1},
                       Tile::swizzle == 128 ? Swizzle::bytes128 : Swizzle::bytes64});
}

// Of a tensor without elements there is no map, and nothing is loaded: another's will do.
template <class Tile>
CUtensorMap map_or_any(const TensorView& tensor, const TensorView& another) {
    return map_of<Tile>(elements(tensor) > 0 ? tensor : another);
}

// ---- which part a block works on ----

constexpr std::int64_t cached_bytes = std::int64_t{32} << 20;  // of keys and values that stay in L2 beside the rest

// How many heads a section has at most; at least those of one kv head.
struct Sections {
    std::int64_t bytes;              // of their keys and values
    std::optional<unsigned> rounds;  // tiles for each block
};

// All tiles of all heads, in the order in which they are begun: heads in sections; of a section the longest tiles under
// a causal diagonal first. Blocks stay, and take the next one when they are done: which block makes which tile is left
// to chance, and nothing depends on it.
template <Over over>
struct Schedule {
    Tiling<over> tiling;
    unsigned heads, section_heads, tiles;  // heads of all sequences
    unsigned items, blocks;
    unsigned* taken;

    Schedule(const Problem& p, int tile, const Sections& sections = {cached_bytes, {}})
        : tiling(p, tile, 1, static_cast<int>(over == Over::rows ? p.H : p.G)),
          heads(static_cast<unsigned>((p.keys.cu_seqlens ? 1 : p.keys.sequences()) * tiling.kv_heads)),
          tiles(static_cast<unsigned>(tiling.tiles)),
          items(heads * tiles) {
        const std::int64_t group = over == Over::rows ? p.H / p.G : 1;
        const auto most = static_cast<unsigned>(multiprocessors());
        blocks = items < most ? items : most;
        const std::int64_t bytes = 2 * sizeof(std::uint16_t) * p.S * p.D;  // of a kv head
        std::int64_t together = bytes > 0 ? sections.bytes / bytes * group : heads;
        if (sections.rounds && items > 0) {
            const std::int64_t in_rounds = divide_up(std::int64_t{*sections.rounds} * blocks / tiles, group) * group;
            together = together < in_rounds ? together : in_rounds;
        }
        section_heads = static_cast<unsigned>(together < group ? group : together > heads ? heads : together);
        taken = scratch<unsigned>(1);
        clear(taken, sizeof *taken);
    }

    // By a whole warp.
    __device__ Work work(unsigned item) const {
        const unsigned section = item / (section_heads * tiles), in_section = item % (section_heads * tiles);
        const unsigned left = heads - section * section_heads;
        const unsigned here = left < section_heads ? left : section_heads;
        const unsigned tile = in_section / here;
        return tiling.at(section * section_heads + in_section % here, over == Over::rows ? tiles - 1 - tile : tile);
    }
    // The next item, by a whole warp: of blocks whose first one is their number, or of those that take all here, so
    // that what comes earlier is begun earlier.
    __device__ unsigned next() const { return blocks + next_from_first(); }
    __device__ unsigned next_from_first() const {
        unsigned before = 0;
        if (ptx::elect_lane()) before = atomicAdd(taken, 1u);
        return __reduce_max_sync(all_lanes, before);
    }
};

// ---- rings ----

// Barriers of a ring of so many stages: what comes n-th goes through stage n % stages. Who multiplies is done with it
// warp by warp.
template <int stages>
struct Ring {
    std::uint64_t full_[stages], empty_[stages];

    static __device__ int stage(unsigned n) { return static_cast<int>(n % stages); }
    static __device__ unsigned parity(unsigned n) { return n / stages % 2; }

    __device__ void init(int empties, int fills = 1) {  // arrivals
        for (int i = 0; i < stages; ++i) {
            ptx::mbarrier_init(ptx::shared_address(&full_[i]), fills);
            ptx::mbarrier_init(ptx::shared_address(&empty_[i]), empties);
        }
    }
    __device__ std::uint32_t full(unsigned n) const { return ptx::shared_address(&full_[stage(n)]); }
    __device__ std::uint32_t empty(unsigned n) const { return ptx::shared_address(&empty_[stage(n)]); }
    __device__ void wait_full(unsigned n) const { ptx::mbarrier_wait(full(n), parity(n)); }
    __device__ void wait_empty(unsigned n) const { ptx::mbarrier_wait(empty(n), parity(n) ^ 1); }
    __device__ void release(unsigned n) const {
        __syncwarp();  // all lanes are done; not noticed if removed: to the emulated device a warp is one agent
        if (ptx::elect_lane()) ptx::mbarrier_arrive(empty(n));
    }
};

// ---- products ----

// The descriptor of what begins `bytes` after: one addition, where making it anew takes four instructions of each
// product, that would not keep pace with small ones.
__device__ inline std::uint64_t descriptor_after(std::uint64_t descriptor, std::uint32_t bytes) {
    const std::uint32_t low = static_cast<std::uint32_t>(descriptor) + (bytes >> 4);
    return (descriptor & ~std::uint64_t{0xffffffff}) | low;
}

// sums = left[rows of the group] · right[its first rows]ᵀ, over all columns
template <class Left, class Right, int sums>
__device__ void start_rows(float (&d)[sums], std::uint32_t left, std::uint32_t right) {
    static_assert(Left::columns == Right::columns && Right::rows >= 2 * sums);
    const std::uint64_t first_left = Left::along_columns(left, 0), first_right = Right::along_columns(right, 0);
#pragma unroll
    for (int k = 0; k < Left::columns; k += 16) {
        ptx::wgmma<typename Left::Storage, ptx::Major::k, ptx::Major::k>(
            d, descriptor_after(first_left, Left::column_offset(k)),
            descriptor_after(first_right, Right::column_offset(k)), k > 0);
    }
}

// A group's weights as operands: of step j the columns 16j to 16j + 15.
template <int steps>
using Weights = std::uint32_t[steps][4];

template <class Storage, int steps>
__device__ void pack(Weights<steps>& to, const float (&from)[8 * steps]) {
#pragma unroll
    for (int j = 0; j < steps; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) to[j][i] = ptx::pack_pair<Storage>(from[8 * j + 2 * i], from[8 * j + 2 * i + 1]);
    }
}

// sums += weights · right[its first rows]
template <class Right, int sums, int steps>
__device__ void start_weights(float (&d)[sums], const Weights<steps>& weights, std::uint32_t right) {
    static_assert(Right::rows >= 16 * steps && Right::columns == 2 * sums);
    const std::uint64_t first = Right::along_rows(right, 0);
#pragma unroll
    for (int j = 0; j < steps; ++j) {
        ptx::wgmma<typename Right::Storage, ptx::Major::other>(
            d, weights[j], descriptor_after(first, 16 * j * Right::row_bytes), true);
    }
}

template <int steps>
__device__ void pin(Weights<steps>& weights) {
#pragma unroll
    for (int j = 0; j < steps; ++j) ptx::pin(weights[j]);
}

// Which of a group's rows an accumulator of this lane is, 0 to 63; `half`: 0 or 1.
__device__ inline int row_of(int half) {
    return static_cast<int>(threadIdx.x) % group_threads / warp_lanes * 16 + half * 8 +
           static_cast<int>(threadIdx.x) % warp_lanes / 4;
}

// Writes factor(half) · sums, rounded to the dtype, to the vectors at(half), null for none. The lanes of four trade
// columns, so that each stores 16 bytes. + 0, so that a sum of nothing but underflows is +0.
template <class Storage, int sums, class At, class Factor>
__device__ void store_sums(const float (&d)[sums], bool in_chunks, int D, At at, Factor factor) {
    const int q = static_cast<int>(threadIdx.x) % 4;
    static_assert(sums % 16 == 0);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Storage* const to = at(half);
        const float by = factor(half);
#pragma unroll
        for (int j = 0; j < sums / 16; ++j) {
            std::uint32_t word[4];
#pragma unroll
            for (int b = 0; b < 4; ++b) {
                const int i = 16 * j + 4 * b + 2 * half;
                word[b] = ptx::pack_pair<Storage>(fmaf(d[i], by, 0.0f), fmaf(d[i + 1], by, 0.0f));
            }
#pragma unroll
            for (int step = 1; step <= 2; step *= 2) {
#pragma unroll
                for (int b = 0; b < 4; ++b) {
                    if (b & step) continue;
                    const bool upper = q & step;
                    const std::uint32_t got = __shfl_xor_sync(all_lanes, upper ? word[b] : word[b + step], step);
                    if (upper)
                        word[b] = got;
                    else
                        word[b + step] = got;
                }
            }
            const int column = 32 * j + 8 * q;
            if (!to || column >= D) continue;
            if (in_chunks) {
                *reinterpret_cast<uint4*>(to + column) = {word[0], word[1], word[2], word[3]};
            } else {
                alignas(16) Storage chunk[8];
                *reinterpret_cast<uint4*>(chunk) = {word[0], word[1], word[2], word[3]};
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    if (column + i < D) to[column + i] = chunk[i];
                }
            }
        }
    }
}

// ---- scores ----

// What stands between a product q·k and a weight, in units of log 2: weight = 2^(factor · capped(product) - ...).
struct Scoring {
    bool capped;
    float inside;   // of the softcap: capped(x) = tanh(x · inside / (2 log2 e))
    float factor;   // positive
    float largest;  // products (or tangents) up to it are rounded to less than a bit when multiplied by the factor

    explicit Scoring(const Problem& p) {
        constexpr double log2_e = 1.442695040888963407;
        capped = p.softcap.has_value();
        inside = capped ? static_cast<float>(2 * log2_e * p.scale / *p.softcap) : 0;
        factor = static_cast<float>((capped ? *p.softcap : p.scale) * log2_e);
        largest = 0x1p24f / factor;
    }

    // The weight of a product, or of a tangent, for the row's lse in units of log 2. At most 1: of large scores what
    // was saved of the log-sum-exp is rounded by more than exp2 could bear.
    __device__ float weight(float x, float lse) const {
        return ptx::exp2_approx(ptx::min_nan(fmaf(x, factor, -lse), 0.0f));
    }

    // 1 - 2 / (1 + e^2x): an absolute error like tanh's own, which is what counts in an exponent.
    __device__ float cap(float x) const { return 1 - __fdividef(2, 1 + ptx::exp2_approx(x * inside)); }
};

// ---- the keys that a block's rows see ----

// A tile of a query head's rows, and the key tiles that they see, in the tensors' coordinates.
struct RowsLoads {
    int query = 0, head = 0, batch = 0;
    int key = 0, tiles = 0;  // the first key of the first tile
    Keys seen{0, 0};         // by any query of the sequence; without end, if that is the tensor's
};

// Loads the n-th tile of a ring, whose first key is `key`.
template <class Tile, int stages>
__device__ void load_all(Tile& tile, const Ring<stages>& ring, unsigned n, const CUtensorMap& map,
                         const RowsLoads& item, int key, int kv_head) {
    ring.wait_empty(n);
    if (ptx::elect_lane()) {
        ptx::mbarrier_arrive_expect(ring.full(n), Tile::size);
        tile.load(map, key, kv_head, item.batch, ring.full(n));
    }
}

// The same, but hidden keys become zeros: those outside of the tensor come as such, the others wait at `landed` until
// they are overwritten. `hidden`: how many tiles had any.
template <class Tile, int stages>
__device__ void load_visible(Tile& tile, const Ring<stages>& ring, unsigned n, const CUtensorMap& map,
                             const RowsLoads& item, int key, int kv_head, const std::uint64_t& landed,
                             unsigned& hidden) {
    const int begin = item.seen.begin - key;
    const int end = item.seen.end - key < Tile::rows ? item.seen.end - key : Tile::rows;
    const bool hides = begin > 0 || end < Tile::rows;
    const std::uint32_t barrier = hides ? ptx::shared_address(&landed) : ring.full(n);
    ring.wait_empty(n);
    if (ptx::elect_lane()) {
        ptx::mbarrier_arrive_expect(barrier, Tile::size);
        tile.load(map, key, kv_head, item.batch, barrier);
    }
    if (!hides) return;
    ptx::mbarrier_wait(barrier, hidden++ % 2);
    tile.clear_rows(0, begin);
    tile.clear_rows(end, Tile::rows);
    ptx::fence_async_shared();
    __syncwarp();  // all lanes have; not noticed if removed: to the emulated device a warp is one agent
    if (ptx::elect_lane()) ptx::mbarrier_arrive(ring.full(n));
}

}  // namespace
}  // namespace pygpt::cuda

#endif
