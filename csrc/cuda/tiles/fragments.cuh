// Operands of mma.m16n8k16 from tiles of 16-bit elements in shared memory, and products of what was loaded.
//
// The product is d (rows, columns) += a (rows, k) · b (k, columns). A tile holds an operand with k along its rows, or
// "across": with k from row to row. Places in a tile are multiples of 16.
#ifndef PYGPT_CUDA_TILES_FRAGMENTS_CUH
#define PYGPT_CUDA_TILES_FRAGMENTS_CUH

#include <cstdint>

#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/tiles/shared_tile.cuh"

namespace pygpt::cuda {

// (16, 16) of a for one mma.
using RowFragment = std::uint32_t[4];
// (16, 16) of b: the first two registers are the 8 columns of one mma, the others those of the next.
using ColumnFragment = std::uint32_t[4];

// How the lanes of an ldmatrix.x4 point at a (16, 16) part of a tile: its four (8, 8) matrices down the rows first, or
// along the columns first.
template <class Tile>
__device__ std::uint32_t rows_first(std::uint32_t tile, int row, int column, int lane) {
    return tile + Tile::offset(row, lane % 16, column / Tile::chunk_elements + lane / 16);
}
template <class Tile>
__device__ std::uint32_t columns_first(std::uint32_t tile, int row, int column, int lane) {
    return tile + Tile::offset(row, lane / 16 * 8 + lane % 8, column / Tile::chunk_elements + lane / 8 % 2);
}

// a from a tile (rows, k)
template <class Tile>
__device__ void load_rows(RowFragment& a, std::uint32_t tile, int row, int k, int lane) {
    ptx::ldmatrix(a, rows_first<Tile>(tile, row, k, lane));
}
// a from a tile (k, rows)
template <class Tile>
__device__ void load_rows_across(RowFragment& a, std::uint32_t tile, int row, int k, int lane) {
    ptx::ldmatrix_transposed(a, columns_first<Tile>(tile, k, row, lane));
}
// b from a tile (columns, k)
template <class Tile>
__device__ void load_columns(ColumnFragment& b, std::uint32_t tile, int column, int k, int lane) {
    ptx::ldmatrix(b, columns_first<Tile>(tile, column, k, lane));
}
// b from a tile (k, columns)
template <class Tile>
__device__ void load_columns_across(ColumnFragment& b, std::uint32_t tile, int column, int k, int lane) {
    ptx::ldmatrix_transposed(b, rows_first<Tile>(tile, k, column, lane));
}

// d[i][j] (16 rows, 8 columns) += a[i] · half of b[j / 2]
template <class Storage, int row_blocks, int column_blocks>
__device__ void multiply_add(float (&d)[row_blocks][column_blocks][4], const RowFragment (&a)[row_blocks],
                             const ColumnFragment (&b)[column_blocks / 2]) {
#pragma unroll
    for (int i = 0; i < row_blocks; ++i) {
#pragma unroll
        for (int j = 0; j < column_blocks; ++j) {
            ptx::mma_m16n8k16<Storage>(d[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
}

}  // namespace pygpt::cuda

#endif
