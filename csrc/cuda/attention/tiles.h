// The sizes of attention's tiles, for each dtype and head size, and how tiles travel between global and shared memory.
//
// A block has tiles of its own (rows, or keys where gradients of keys are made) that stay, and walks over tiles of the
// other kind. A warp owns 16 or 32 rows of the block's own tile. All fits the 99 KB of shared memory that a block has
// on sm_86, sm_89 and sm_120, so that every device of the sm_80 path has the same tiles and the same bits. A lane's
// accumulators take at most two thirds of the 255 registers that it may have, as addresses, statistics and options need
// the rest: nothing spills (tests/test_machine_code.py). The kernels' bounds ask for one block on a multiprocessor, or
// ptxas spills to fit more.
#ifndef PYGPT_CUDA_ATTENTION_TILES_H
#define PYGPT_CUDA_ATTENTION_TILES_H

#include "cuda/attention/problem.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/tiles/reduce.cuh"
#include "cuda/tiles/shared_tile.cuh"

namespace pygpt::cuda {
namespace {

constexpr int fragment_rows = 16;  // of a warp's accumulators
constexpr int block_columns = 8;   // of each of their blocks: element e of lane (g, q) is row g + e / 2 · 8, column
                                   // 2q + e % 2

template <class Storage_, int head_dim_>
struct Sizes {
    using Storage = Storage_;
    static constexpr int head_dim = head_dim_;  // that of the tensors, or the next larger one there is
    static constexpr int row_bytes = head_dim * static_cast<int>(sizeof(Storage));
    static constexpr int warps = row_bytes <= 512 ? 4 : 2;
    static constexpr int threads = warps * warp_lanes;
};

// One tile of its own (q), two of the others (k, v).
template <class Storage, int head_dim>
struct ForwardSizes : Sizes<Storage, head_dim> {
    using Base = Sizes<Storage, head_dim>;
    // Of a warp: two use what they load twice. float32 has no registers to spare.
    static constexpr int fragments = sizeof(Storage) == 2 && Base::row_bytes <= 256 ? 2 : 1;
    static constexpr int rows = Base::warps * fragments * fragment_rows;
    static constexpr int keys = Base::row_bytes <= 128 ? 64 : 32;  // more scores have no registers beside out
};

// Two tiles of its own, two of the others.
template <class Storage, int head_dim>
struct GradientSizes : Sizes<Storage, head_dim> {
    using Base = Sizes<Storage, head_dim>;
    static constexpr int own = Base::warps * fragment_rows;
    static constexpr int others = head_dim > 128 ? 16 : sizeof(Storage) == 2 ? 64 : 32;
};

// The same where the block owns keys: it sums two gradients, which leave few registers for scores where D is large.
template <class Storage, int head_dim>
struct KeyGradientSizes : GradientSizes<Storage, head_dim> {
    using Base = GradientSizes<Storage, head_dim>;
    static constexpr int others = Base::row_bytes <= 192 ? 64 : Base::row_bytes <= 256 ? 32 : 16;
};

// This thread's number among the block's, or its warp's.
template <int threads>
__device__ int thread_of() {
    return static_cast<int>(threads == warp_lanes ? threadIdx.x % warp_lanes : threadIdx.x);
}

// Starts copies by the block's threads, or for a tile of its own by a warp's, of the rows in [begin, end) of a tile, of
// which vector(r) is the first element in global memory; the other rows, and columns from D on, become zeros, whatever
// memory holds.
template <class Tile, int threads, class Storage, class Vector>
__device__ void load_tile(Tile& tile, bool in_chunks, int D, int begin, int end, Vector vector) {
    constexpr int pieces = Tile::rows * Tile::chunks;
    static_assert(pieces % threads == 0);
    const std::uint32_t to = tile.address();
    if (in_chunks) {
        const int first_row = thread_of<threads>() / Tile::chunks;
        const int first_chunk = thread_of<threads>() % Tile::chunks;
        // Keys lie at equal distances: one address then serves them all, where each would keep registers of its own.
        constexpr bool steps = Vector::equal_distances && threads % Tile::chunks == 0;
        const Storage* at = vector(steps ? first_row : begin) + (steps ? first_chunk * Tile::chunk_elements : 0);
#pragma unroll 1  // or the addresses of all pieces would be kept from tile to tile
        for (int first = 0; first < pieces; first += threads) {
            const int piece = first + thread_of<threads>();
            const int row = steps ? first_row + first / Tile::chunks : piece / Tile::chunks;
            const int chunk = steps ? first_chunk : piece % Tile::chunks;
            const bool exists = row >= begin && row < end && chunk * Tile::chunk_elements < D;
            if constexpr (!steps) {
                if (exists) at = vector(row) + chunk * Tile::chunk_elements;
            }
            ptx::cp_async(to + Tile::offset(0, row, chunk), at, exists);
            if constexpr (steps) at += threads / Tile::chunks * vector.stride;
        }
        return;
    }
#pragma unroll 1
    for (int piece = thread_of<threads>(); piece < pieces; piece += threads) {
        const int row = piece / Tile::chunks;
        const int column = piece % Tile::chunks * Tile::chunk_elements;
        const int left = row >= begin && row < end ? D - column : 0;
        const Storage* const from = left > 0 ? vector(row) + column : nullptr;
        alignas(chunk_bytes) Storage chunk[Tile::chunk_elements];
#pragma unroll
        for (int i = 0; i < Tile::chunk_elements; ++i) chunk[i] = i < left ? from[i] : from_float<Storage>(0);
        *reinterpret_cast<uint4*>(tile.bytes + Tile::offset(0, row, piece % Tile::chunks)) =
            *reinterpret_cast<const uint4*>(chunk);
    }
}

// Writes rows `first` to `first` + count of a tile, and of them `columns` columns, by one warp.
template <class Tile, class Storage, class Vector>
__device__ void store_rows(const Tile& tile, bool in_chunks, int D, int first, int count, Vector vector,
                           int first_column = 0, int columns = Tile::columns) {
    const int chunks = columns / Tile::chunk_elements;
#pragma unroll 1
    for (int piece = static_cast<int>(threadIdx.x) % warp_lanes; piece < count * chunks; piece += warp_lanes) {
        const int row = first + piece / chunks;
        const int column = first_column + piece % chunks * Tile::chunk_elements;
        if (column >= D) continue;
        Storage* const to = vector(row) + column;
        const uint4 whole =
            *reinterpret_cast<const uint4*>(tile.bytes + Tile::offset(0, row, column / Tile::chunk_elements));
        if (in_chunks) {
            *reinterpret_cast<uint4*>(to) = whole;
        } else {
            alignas(chunk_bytes) Storage chunk[Tile::chunk_elements];
            *reinterpret_cast<uint4*>(chunk) = whole;
#pragma unroll
            for (int i = 0; i < Tile::chunk_elements; ++i) {
                if (column + i < D) to[i] = chunk[i];
            }
        }
    }
}

}  // namespace
}  // namespace pygpt::cuda

#endif
