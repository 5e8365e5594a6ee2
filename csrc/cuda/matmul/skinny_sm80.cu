// Products with few rows, for decoding.        a (M, K) · bᵀ, b (N, K): weights, read once for 64 rows -> out (M, N)
//
// 2·M·N·K operations on N·K weights: in 16 bits M operations a byte, where a card has 150 and more for each byte that
// it reads. So the weights' way from memory is the bound, and all else is made to hide behind it.
//
// A block owns 16 columns of `out`, 16 rows of b, for up to 64 rows of a. Its 8 warps walk over K side by side, 64
// bytes of each row of b a step, and so all K of the 16 rows passes by in the order it lies in memory. A lane loads 16
// bytes at a time right into the registers from which they are multiplied, 8 such loads ahead: 32 KB on their way for a
// block, where a multiprocessor's share of 4 TB/s asks for 20. a comes from the L1 cache, in the same 16 bytes of K.
//
// 16-bit numbers are multiplied by mma.m16n8k16 with the weights as its 16 rows, 8 rows of a as its columns. Which k
// goes where in an mma is free, as long as both operands agree: lane q of four takes 8 neighbours, two of them each for
// the four places that two mma's have for it. float32 takes fused multiply-adds (why not tf32: product_sm80.cu), of the
// same 16 columns and steps; the four lanes' sums are added at the end.
//
// An element's sum: each of 8 warps adds up every eighth step, in order; the warps' sums are added in order. K alone
// decides that, so an element has the same bits for any M, in any place of a.
#include <cstdint>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/number.cuh"
#include "cuda/ptx/load.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/tiles/reduce.cuh"

namespace pygpt::cuda {
namespace {

constexpr int columns = 16;  // of a block
constexpr int warps = 8;
constexpr int threads = warps * warp_lanes;
constexpr int steps_ahead = 4;  // of a warp, loaded before the first of them is multiplied
constexpr int row_block = 8;    // rows of a: the columns of an mma

template <class Storage_, int row_blocks_>
struct Traits {
    using Storage = Storage_;
    static constexpr int row_blocks = row_blocks_;
    static constexpr int rows = row_block * row_blocks;
    static constexpr int chunk = 16 / static_cast<int>(sizeof(Storage));  // elements that a lane loads at a time
    static constexpr int step_k = 4 * chunk;
    static constexpr bool by_fma = sizeof(Storage) == 4;
    // At least, with no register spilled: sm_120 needs more than 128 of them for the sums of 64 rows.
    static constexpr int blocks_per_multiprocessor = by_fma || row_blocks == 8 ? 1 : 2;
};

struct Parameters {
    Matrix a, b;
    std::int64_t M, N, K;
    std::int64_t row_tiles;
    bool packs;
    Epilogue epilogue;
};

// Sums of a lane (g, q) as mma.m16n8k16 has them: d[j] of block j holds rows 8j + 2q and the next of a, in columns g
// and then g + 8.
template <int row_blocks>
using Sums = float[row_blocks][4];

// What a warp reads of a: the same places along K as of b.
template <class T>
class ByMma {
  public:
    using Storage = typename T::Storage;

    // `from`: row 0 of the block's rows of a, of which `left` exist.
    __device__ ByMma(const Storage* from, std::int64_t pitch, std::int64_t left, int g)
        : from_(from + g * pitch), block_(row_block * pitch) {
#pragma unroll
        for (int j = 0; j < T::row_blocks; ++j) exists_ |= unsigned{row_block * j + g < left} << j;
    }

    // Adds the products of a lane's chunks, of columns g and g + 8, with those of a at k.
    __device__ void add(const uint4 (&weights)[2], std::int64_t k, bool k_exists) {
        const std::uint32_t low[4] = {weights[0].x, weights[1].x, weights[0].y, weights[1].y};
        const std::uint32_t high[4] = {weights[0].z, weights[1].z, weights[0].w, weights[1].w};
#pragma unroll
        for (int j = 0; j < T::row_blocks; ++j) {
            uint4 x{};
            if (k_exists && exists_ >> j & 1) x = *reinterpret_cast<const uint4*>(from_ + j * block_ + k);
            ptx::mma_m16n8k16<Storage>(sums_[j], low, x.x, x.y);
            ptx::mma_m16n8k16<Storage>(sums_[j], high, x.z, x.w);
        }
    }

    __device__ void finish(Sums<T::row_blocks>& sums, int) {
#pragma unroll
        for (int j = 0; j < T::row_blocks; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[j][e] = sums_[j][e];
        }
    }

  private:
    const Storage* from_;
    std::int64_t block_;
    unsigned exists_ = 0;  // bit j: row g of block j
    Sums<T::row_blocks> sums_{};
};

template <class T>
class ByFma {
  public:
    __device__ ByFma(const float* from, std::int64_t pitch, std::int64_t left, int)
        : from_(from), pitch_(pitch), left_(left < T::rows ? static_cast<int>(left) : T::rows) {}

    __device__ void add(const uint4 (&weights)[2], std::int64_t k, bool k_exists) {
#pragma unroll
        for (int row = 0; row < T::rows; ++row) {
            float4 x{};
            if (k_exists && row < left_) x = *reinterpret_cast<const float4*>(from_ + row * pitch_ + k);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float& sum = sums_[row][half];
                sum = fmaf(__uint_as_float(weights[half].x), x.x, sum);
                sum = fmaf(__uint_as_float(weights[half].y), x.y, sum);
                sum = fmaf(__uint_as_float(weights[half].z), x.z, sum);
                sum = fmaf(__uint_as_float(weights[half].w), x.w, sum);
            }
        }
    }

    // Of each 8 rows, lane q keeps 2q and 2q + 1: it gives away half of what it has, twice, for the other lanes' sums.
    __device__ void finish(Sums<T::row_blocks>& sums, int q) {
#pragma unroll
        for (int j = 0; j < T::row_blocks; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float four[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    four[i] = exchange(sums_[8 * j + i][half], sums_[8 * j + i + 4][half], q & 2, 2);
                }
#pragma unroll
                for (int e = 0; e < 2; ++e) sums[j][2 * half + e] = exchange(four[e], four[e + 2], q & 1, 1);
            }
        }
    }

  private:
    __device__ static float exchange(float low, float high, bool keeps_high, int distance) {
        return (keeps_high ? high : low) + from_lane_at(distance, keeps_high ? low : high);
    }

    const float* from_;
    std::int64_t pitch_;
    int left_;
    float sums_[T::rows][2]{};
};

// Where a row's column stands in the warp's sums in shared memory. Two rows fill the 32 banks, in groups of 8 columns
// that trade places: neither a warp's sums, of every second row, nor the chunks of 4 that are read meet in a bank.
__device__ inline int place(int row, int column) {
    return row / 2 * 32 + ((row % 2 * 2 + column / 8) ^ (row / 2 % 4)) * 8 + column % 8;
}

template <class T, bool packs>
__device__ void finish(const Parameters& p, const float (&sums)[warps][T::rows * columns], std::int64_t m,
                       std::int64_t n) {
    using Storage = typename T::Storage;
    const int row = static_cast<int>(threadIdx.x) / (columns / 4);
    const int column = static_cast<int>(threadIdx.x) % (columns / 4) * 4;
    const std::int64_t left = p.N - n - column;
    if (row >= T::rows || m + row >= p.M || left <= 0) return;
    Floats<4> x{};
#pragma unroll
    for (int warp = 0; warp < warps; ++warp) {
        const float4 more = *reinterpret_cast<const float4*>(sums[warp] + place(row, column));
        x.value[0] += more.x;
        x.value[1] += more.y;
        x.value[2] += more.z;
        x.value[3] += more.w;
    }
    const Epilogue& e = p.epilogue;
    const Floats<4> bias = bias_of<packs, 4, Storage>(e, n + column, left);
    finish_together<Precision::of_32_bits, packs, Storage>(e, 0, (m + row) * e.pitch + n + column, left, bias, x);
}

template <class T>
__global__ void __launch_bounds__(threads, T::blocks_per_multiprocessor)
    skinny_product_sm80_kernel(const __grid_constant__ Parameters p) {
    using Storage = typename T::Storage;
    __shared__ __align__(16) float sums[warps][T::rows * columns];
    static_assert(T::rows * columns / 4 <= threads);  // in finish() a thread has one chunk of 4
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
    const int g = lane / 4, q = lane % 4;
    // Blocks that share weights follow one another, so that these are read from memory once.
    const std::int64_t m = blockIdx.x % p.row_tiles * T::rows;
    const std::int64_t n = blockIdx.x / p.row_tiles * columns;

    // Columns past the last are those of the last: what they give is not kept.
    const auto* const b = static_cast<const Storage*>(p.b.data);
    const std::int64_t last = p.N - 1;
    const Storage* const weights[2] = {b + (n + g < last ? n + g : last) * p.b.pitch,
                                       b + (n + g + 8 < last ? n + g + 8 : last) * p.b.pitch};
    std::conditional_t<T::by_fma, ByFma<T>, ByMma<T>> products(static_cast<const Storage*>(p.a.data) + m * p.a.pitch,
                                                               p.a.pitch, p.M - m, g);

    for (std::int64_t first = warp * T::step_k; first < p.K; first += steps_ahead * warps * T::step_k) {
        const std::int64_t k = first + q * T::chunk;
        uint4 held[steps_ahead][2];
#pragma unroll
        for (int ahead = 0; ahead < steps_ahead; ++ahead) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const std::int64_t at = k + ahead * warps * T::step_k;
                held[ahead][half] = at < p.K ? ptx::load_once(weights[half] + at) : uint4{};
            }
        }
#pragma unroll
        for (int ahead = 0; ahead < steps_ahead; ++ahead) {
            const std::int64_t at = k + ahead * warps * T::step_k;
            if (at - q * T::chunk < p.K) products.add(held[ahead], at, at < p.K);
        }
    }

    Sums<T::row_blocks> own;
    products.finish(own, q);
#pragma unroll
    for (int j = 0; j < T::row_blocks; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[warp][place(row_block * j + 2 * q + e % 2, g + e / 2 * 8)] = own[j][e];
    }
    __syncthreads();
    if (p.packs) {
        finish<T, true>(p, sums, m, n);
    } else {
        finish<T, false>(p, sums, m, n);
    }
}

template <class Storage, int row_blocks>
void launch_product(Parameters parameters) {
    using T = Traits<Storage, row_blocks>;
    parameters.row_tiles = divide_up(parameters.M, T::rows);
    const std::int64_t blocks = parameters.row_tiles * divide_up(parameters.N, columns);
    launch(skinny_product_sm80_kernel<T>, {.grid = static_cast<unsigned>(blocks), .block = threads}, parameters);
}

}  // namespace

void skinny_product(const Product& p) {
    const Parameters parameters{.a = p.a,
                                .b = p.b,
                                .M = p.M,
                                .N = p.N,
                                .K = p.K,
                                .row_tiles = 0,
                                .packs = in_packs(p.epilogue, 4, p.N),
                                .epilogue = p.epilogue};
    with_storage(p.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        if (p.M <= 8) return launch_product<Storage, 1>(parameters);
        // float32 has no registers for the sums of more rows.
        if (p.M <= 16 || sizeof(Storage) == 4) return launch_product<Storage, 2>(parameters);
        if constexpr (sizeof(Storage) == 2) {
            if (p.M <= 32) return launch_product<Storage, 4>(parameters);
            return launch_product<Storage, 8>(parameters);
        }
    });
}

}  // namespace pygpt::cuda
