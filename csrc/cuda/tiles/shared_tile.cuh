// A matrix in shared memory, rows one after the other, in chunks of 16 bytes that are swizzled: chunk c of row r lies
// where chunk c ^ swizzle(r) of the row would. So neither eight rows' chunks of one place (ldmatrix), nor the chunks of
// a row one after the other (copies), meet in a bank, and no row needs padding.
#ifndef PYGPT_CUDA_TILES_SHARED_TILE_CUH
#define PYGPT_CUDA_TILES_SHARED_TILE_CUH

#include <cstdint>

#include "cuda/ptx/shared_address.cuh"

namespace pygpt::cuda {

constexpr int chunk_bytes = 16;

template <class Storage_, int rows_, int columns_>
struct SharedTile {
    using Storage = Storage_;
    static constexpr int rows = rows_;
    static constexpr int columns = columns_;
    static constexpr int chunk_elements = chunk_bytes / static_cast<int>(sizeof(Storage));
    static constexpr int row_bytes = columns * static_cast<int>(sizeof(Storage));
    static constexpr int chunks = row_bytes / chunk_bytes;  // of a row
    static_assert(row_bytes % chunk_bytes == 0);

    // Of chunks that may trade places: the eight of 128 bytes, or as many as rows of this length leave aligned.
    static constexpr int swizzled = chunks % 8 == 0 ? 8 : chunks % 4 == 0 ? 4 : chunks % 2 == 0 ? 2 : 1;

    alignas(128) unsigned char bytes[rows * row_bytes];

    __device__ static int swizzle(int row) { return row / (8 / swizzled) % swizzled; }

    // Bytes from the tile's start to a chunk of row `row` + `more`. `row` is a multiple of 8, which the swizzle does
    // not look at: addresses whose rows differ by it alone differ by a constant.
    __device__ static std::uint32_t offset(int row, int more, int chunk) {
        return static_cast<std::uint32_t>((row + more) * row_bytes + (chunk ^ swizzle(more)) * chunk_bytes);
    }

    __device__ std::uint32_t address() const { return ptx::shared_address(bytes); }
};

}  // namespace pygpt::cuda

#endif
