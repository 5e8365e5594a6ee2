// A matrix of 16-bit numbers in shared memory as tensor copies lay it (ptx/tma.cuh) and wgmma reads it: blocks of as
// many columns as fit a swizzled row, one block after the other, each of all rows.
#ifndef PYGPT_CUDA_TILES_SWIZZLED_TILE_CUH
#define PYGPT_CUDA_TILES_SWIZZLED_TILE_CUH

#include <cstdint>

#include "cuda/ptx/shared_address.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace pygpt::cuda {

template <class Storage_, int rows_, int columns_>
struct SwizzledTile {
    using Storage = Storage_;
    static constexpr int rows = rows_;
    static constexpr int columns = columns_;
    static constexpr int swizzle = columns % 64 == 0 ? 128 : 64;  // bytes of a row of a block
    static constexpr int block_columns = swizzle / static_cast<int>(sizeof(Storage));
    static constexpr int blocks = columns / block_columns;
    static constexpr int block_bytes = rows * swizzle;
    static constexpr int size = blocks * block_bytes;
    static_assert(columns % block_columns == 0 && rows % 8 == 0);

    alignas(1024) unsigned char bytes[size];

    __device__ std::uint32_t address() const { return ptx::shared_address(bytes); }

    // Starts the copies of a box of all rows and columns of a tensor (columns, time, heads, batch), whose maps' boxes
    // are this tile's blocks.
    __device__ void load(const CUtensorMap& map, int time, int head, int batch, std::uint32_t barrier) {
#pragma unroll
        for (int block = 0; block < blocks; ++block) {
            ptx::tma_load<4>(address() + block * block_bytes, map, {block * block_columns, time, head, batch}, barrier);
        }
    }

    // Operands of a product whose k are 16 of the tile's columns: `tile` is its address, plus what rows are skipped.
    __device__ static std::uint64_t along_columns(std::uint32_t tile, int first_column) {
        return ptx::matrix_descriptor<swizzle, ptx::Major::k>(tile + column_offset(first_column));
    }
    // Bytes to the first row's element in a column.
    __device__ static constexpr int column_offset(int column) {
        return column / block_columns * block_bytes + column % block_columns * static_cast<int>(sizeof(Storage));
    }
    // And whose k are 16 of the tile's rows.
    __device__ static std::uint64_t along_rows(std::uint32_t tile, int first_row) {
        return ptx::matrix_descriptor<swizzle, ptx::Major::other>(tile + first_row * swizzle, block_bytes);
    }
    static constexpr int row_bytes = swizzle;  // to skip rows, a multiple of 8

    // Makes rows [begin, end) zeros, by a warp.
    __device__ void clear_rows(int begin, int end) {
        constexpr int chunk = 16, chunks = swizzle / chunk;
        const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
        for (int block = 0; block < blocks; ++block) {
#pragma unroll 1
            for (int i = begin * chunks + lane; i < end * chunks; i += 32) {
                *reinterpret_cast<uint4*>(bytes + block * block_bytes + i * chunk) = {0, 0, 0, 0};
            }
        }
    }
};

}  // namespace pygpt::cuda

#endif
