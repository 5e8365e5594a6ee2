// The instructions of csrc/cuda/ptx that sm_90a has, each used rightly, and wrongly where `wrong` says how.
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/elect.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/named_barrier.cuh"
#include "cuda/ptx/proxy_fence.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/ptx/shared_address.cuh"
#include "cuda/ptx/stmatrix.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/turn.cuh"
#include "cuda/ptx/wgmma.cuh"

using namespace pygpt::cuda::ptx;

#define KERNEL extern "C" __global__ void

namespace {

// Dynamic shared memory from a multiple of 1024 on.
__device__ unsigned char* tiles() {
    extern __shared__ unsigned char memory[];
    return memory + (1024 - shared_address(memory) % 1024) % 1024;
}

// By the whole block: a barrier that others and copies may use.
__device__ std::uint32_t fresh_barrier(std::uint64_t* memory, int arrivals) {
    const std::uint32_t barrier = shared_address(memory);
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, arrivals);
        mbarrier_init_fence();
    }
    __syncthreads();
    return barrier;
}

enum Wrong { none, no_wait, wrong_parity, no_proxy_fence, wrong_swizzle, wrong_bytes, wait_for_read };

// ---- Tensor copies: a box of `bytes` at the coordinates `at` of one tensor goes to the same place of another, and as
// it lies in shared memory to `out`.
template <int dimensions>
__device__ void copy_box(const CUtensorMap& from, const CUtensorMap& to, const int* at, unsigned char* out, int bytes,
                         int wrong) {
    __shared__ std::uint64_t memory;
    const std::uint32_t barrier = fresh_barrier(&memory, 1);
    unsigned char* const tile = tiles();
    int corner[dimensions];
    for (int i = 0; i < dimensions; ++i) corner[i] = at[i];
    if (threadIdx.x == 0) {
        tma_prefetch(from);
        mbarrier_arrive_expect(barrier, wrong == wrong_bytes ? bytes + 16 : bytes);
        tma_load(shared_address(tile), from, corner, barrier);
    }
    if (wrong != no_wait) mbarrier_wait(barrier, wrong == wrong_parity ? 1 : 0);
    for (int i = threadIdx.x; i < bytes; i += blockDim.x) out[i] = tile[i];
    if (threadIdx.x == 0) {
        mbarrier_wait(barrier, 0);
        tma_store(to, corner, shared_address(tile));
        tma_commit();
        tma_wait<0>();
    }
}

}  // namespace

KERNEL copy_2d(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to, const int* at,
               unsigned char* out, int bytes, int wrong) {
    copy_box<2>(from, to, at, out, bytes, wrong);
}
KERNEL copy_3d(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to, const int* at,
               unsigned char* out, int bytes, int wrong) {
    copy_box<3>(from, to, at, out, bytes, wrong);
}
KERNEL copy_4d(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to, const int* at,
               unsigned char* out, int bytes, int wrong) {
    copy_box<4>(from, to, at, out, bytes, wrong);
}
KERNEL copy_5d(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to, const int* at,
               unsigned char* out, int bytes, int wrong) {
    copy_box<5>(from, to, at, out, bytes, wrong);
}

// A float32 box (8, 8) is written by stores, read by a tensor store, and added by a tensor reduction.
KERNEL store_and_add(const __grid_constant__ CUtensorMap to, int wrong) {
    float* const tile = reinterpret_cast<float*>(tiles());
    tile[threadIdx.x] = static_cast<float>(threadIdx.x);
    if (wrong != no_proxy_fence) fence_async_shared();
    __syncthreads();
    if (threadIdx.x > 0) return;
    tma_store(to, {0, 0}, shared_address(tile));
    tma_commit();
    tma_wait<0>();
    fence_async_global();
    tma_add(to, {0, 0}, shared_address(tile));
    tma_commit();
    tma_wait_read<0>();
}

// 64 floats in a row: loaded, stored, added.
KERNEL bulk(const float* from, float* to, int wrong) {
    __shared__ std::uint64_t memory;
    __shared__ __align__(16) float row[64];
    const std::uint32_t barrier = fresh_barrier(&memory, 1);
    if (threadIdx.x > 0) return;
    mbarrier_arrive_expect(barrier, sizeof row);
    bulk_load(shared_address(row), from, sizeof row, barrier);
    mbarrier_wait(barrier, wrong == wrong_parity ? 1 : 0);
    bulk_store(to, shared_address(row), sizeof row);
    tma_commit();
    tma_wait<0>();
    bulk_add(to, shared_address(row), sizeof row);
    tma_commit();
    tma_wait_read<0>();
}

// Each block adds its row of 64 floats to `to`, after the block before; the first one stores.
KERNEL take_turns(const float* from, float* to, std::uint32_t* turn, int wrong) {
    __shared__ std::uint64_t memory;
    __shared__ __align__(16) float row[64];
    const std::uint32_t barrier = fresh_barrier(&memory, 1);
    if (threadIdx.x > 0) return;
    mbarrier_arrive_expect(barrier, sizeof row);
    bulk_load(shared_address(row), from + 64 * blockIdx.x, sizeof row, barrier);
    mbarrier_wait(barrier, 0);
    while (wrong != no_wait && load_acquire(turn) != blockIdx.x) {
    }
    fence_async_global();
    if (blockIdx.x == 0)
        bulk_store(to, shared_address(row), sizeof row);
    else
        bulk_add(to, shared_address(row), sizeof row);
    tma_commit();
    if (wrong == wait_for_read)
        tma_wait_read<0>();
    else
        tma_wait<0>();
    fence_async_global();
    store_release(turn, blockIdx.x + 1);
}

// Two blocks: each loads half of a (2, 64) tile into both; the other's consumers give the place back before it is
// loaded again. out (2, rounds, 128)
template <int dimensions>
__device__ void share_tiles(const CUtensorMap& from, float* out, int rounds, int wrong) {
    __shared__ std::uint64_t memory[2];
    float* const tile = reinterpret_cast<float*>(tiles());
    const std::uint32_t full = fresh_barrier(&memory[0], 1);
    const std::uint32_t empty = fresh_barrier(&memory[1], 2);
    cluster_arrive();
    cluster_wait();
    const int rank = cluster_rank();
    for (int round = 0; round < rounds; ++round) {
        const unsigned parity = round % 2;
        if (threadIdx.x == 0) {
            if (wrong != no_wait) mbarrier_wait(empty, parity ^ 1);
            mbarrier_arrive_expect(full, 512);
            int at[dimensions] = {0, 2 * round + rank};
            tma_load_multicast(shared_address(tile + 64 * rank), from, at, full, 3);
        }
        mbarrier_wait(full, parity);
        out[(rank * rounds + round) * 128 + threadIdx.x] = tile[threadIdx.x];
        __syncthreads();
        if (threadIdx.x < 2) mbarrier_arrive_cluster(cluster_address(empty, threadIdx.x));
    }
    cluster_arrive();
    cluster_wait();
}
KERNEL multicast_2d(const __grid_constant__ CUtensorMap from, float* out, int rounds, int wrong) {
    share_tiles<2>(from, out, rounds, wrong);
}
KERNEL multicast_3d(const __grid_constant__ CUtensorMap from, float* out, int rounds, int wrong) {
    share_tiles<3>(from, out, rounds, wrong);
}
KERNEL multicast_4d(const __grid_constant__ CUtensorMap from, float* out, int rounds, int wrong) {
    share_tiles<4>(from, out, rounds, wrong);
}
KERNEL multicast_5d(const __grid_constant__ CUtensorMap from, float* out, int rounds, int wrong) {
    share_tiles<5>(from, out, rounds, wrong);
}

// ---- Warp specialisation: a warpgroup makes numbers, another takes them, by one barrier each way.
extern "C" __global__ void __launch_bounds__(256) hand_over(float* out, int rounds, int wrong) {
    __shared__ std::uint64_t memory[2];
    __shared__ float value[128];
    const std::uint32_t full = fresh_barrier(&memory[0], 128);
    const std::uint32_t empty = fresh_barrier(&memory[1], 4);
    const int thread = threadIdx.x % 128;
    if (threadIdx.x < 128) {
        setmaxnreg_dec<40>();
        for (int round = 0; round < rounds; ++round) {
            mbarrier_wait(empty, (round + (wrong == wrong_parity ? 0 : 1)) % 2);
            value[thread] = static_cast<float>(round * 128 + thread);
            mbarrier_arrive(full);
        }
        return;
    }
    setmaxnreg_inc<232>();
    for (int round = 0; round < rounds; ++round) {
        mbarrier_wait(full, round % 2);
        out[round * 128 + thread] = value[127 - thread];
        __syncwarp();
        if (elect_lane()) mbarrier_arrive(empty);
        if (thread < 64) barrier_arrive(1, 128);
        if (thread >= 64) barrier_sync(1, 128);
    }
}

// ---- stmatrix: what ldmatrix loads lies where it was. in, out (32, 8) of 16 bits
template <int count>
__device__ void move_matrices(const std::uint32_t* in, std::uint32_t* out, bool transposed) {
    __shared__ __align__(16) std::uint32_t from[32 * 4];
    __shared__ __align__(16) std::uint32_t to[32 * 4];
    for (int i = 0; i < 4; ++i) from[threadIdx.x + 32 * i] = in[threadIdx.x + 32 * i];
    for (int i = 0; i < 4; ++i) to[threadIdx.x + 32 * i] = 0;
    __syncthreads();
    std::uint32_t all[4];
    ldmatrix(all, shared_address(from) + threadIdx.x * 16);
    std::uint32_t held[count];
    for (int i = 0; i < count; ++i) held[i] = all[i];
    const std::uint32_t row = threadIdx.x % (8 * count) * 16;
    if (transposed) {
        if constexpr (count > 1) stmatrix_transposed(shared_address(to) + row, held);
    } else {
        stmatrix(shared_address(to) + row, held);
    }
    __syncthreads();
    for (int i = 0; i < 4; ++i) out[threadIdx.x + 32 * i] = to[threadIdx.x + 32 * i];
}
KERNEL move_matrices_1(const std::uint32_t* in, std::uint32_t* out, int transposed) {
    move_matrices<1>(in, out, transposed);
}
KERNEL move_matrices_2(const std::uint32_t* in, std::uint32_t* out, int transposed) {
    move_matrices<2>(in, out, transposed);
}
KERNEL move_matrices_4(const std::uint32_t* in, std::uint32_t* out, int transposed) {
    move_matrices<4>(in, out, transposed);
}

namespace {

// ---- wgmma: out (64, columns) = a · b over 2 · k, a (64, k) and b (k, columns) by tensor copies whose rows are
// `swizzle` bytes. What has its other dimension along rows comes in boxes of (k, swizzle / 2), the others whole.
template <class Storage_, int columns_, int swizzle_, Major a_major_, Major b_major_, bool a_in_registers_>
struct Traits {
    using Storage = Storage_;
    static constexpr int columns = columns_;
    static constexpr int swizzle = swizzle_;
    static constexpr Major a_major = a_major_;
    static constexpr Major b_major = b_major_;
    static constexpr bool a_in_registers = a_in_registers_;
    static constexpr int row = swizzle / 2;  // elements
    static constexpr int k = b_major == Major::k || a_major == Major::k ? row : 32;
};

// The operand's descriptor at step k / 16.
template <class T, Major major, int swizzle>
__device__ std::uint64_t operand(std::uint32_t tile, int step) {
    return matrix_descriptor<swizzle, major>(tile + step * (major == Major::k ? 32 : 16 * swizzle), T::k * swizzle);
}

// Loads (k, extent) or (extent, k); returns its bytes.
template <class T, Major major>
__device__ int load_operand(std::uint32_t to, const CUtensorMap& map, int extent, std::uint32_t barrier) {
    if (major == Major::k) {
        tma_load(to, map, {0, 0}, barrier);
        return extent * T::swizzle;
    }
    int bytes = 0;
    for (int first = 0; first < extent; first += T::row) {
        tma_load(to + bytes, map, {first, 0}, barrier);
        bytes += T::k * T::swizzle;
    }
    return bytes;
}
template <class T, Major major>
__device__ int operand_bytes(int extent) {
    return major == Major::k ? extent * T::swizzle : (extent + T::row - 1) / T::row * T::k * T::swizzle;
}

template <class T>
__device__ void multiply(const CUtensorMap& a_map, const CUtensorMap& b_map, float* out, int wrong) {
    using Storage = typename T::Storage;
    __shared__ std::uint64_t memory;
    const std::uint32_t barrier = fresh_barrier(&memory, 1);
    unsigned char* const tile = tiles();
    constexpr int b_offset = 64 * 64 * 2;
    const std::uint32_t a_tile = shared_address(tile);
    const std::uint32_t b_tile = a_tile + b_offset;
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, operand_bytes<T, T::a_major>(64) + operand_bytes<T, T::b_major>(T::columns));
        load_operand<T, T::a_major>(a_tile, a_map, 64, barrier);
        load_operand<T, T::b_major>(b_tile, b_map, T::columns, barrier);
    }
    if (wrong != no_wait) mbarrier_wait(barrier, wrong == wrong_parity ? 1 : 0);
    if (wrong == no_proxy_fence || wrong == none) {
        // An ordinary store of what is there already: it must be fenced.
        auto* const chunk = reinterpret_cast<uint4*>(tile) + threadIdx.x;
        const uint4 same = *chunk;
        __syncthreads();
        *chunk = same;
        if (wrong == none) fence_async_shared();
        __syncthreads();
    }

    constexpr int steps = T::k / 16;
    std::uint32_t fragments[steps][4];
    if (T::a_in_registers) {
        const int row = threadIdx.x / 32 * 16 + threadIdx.x % 16;
        for (int step = 0; step < steps; ++step) {
            const std::uint32_t x = row * T::swizzle + step * 32 + threadIdx.x % 32 / 16 * 16;
            ldmatrix(fragments[step], a_tile + (x ^ (x >> 3 & (T::swizzle - 16))));
        }
    }
    float sums[T::columns / 2];
    for (float& sum : sums) sum = 7;  // not added
    constexpr int read_as = T::swizzle == 128 ? 64 : 128;
    for (int turn = 0; turn < 2; ++turn) {
        pin(sums);
        wgmma_fence();
        for (int step = 0; step < steps; ++step) {
            const std::uint64_t b = wrong == wrong_swizzle ? operand<T, T::b_major, read_as>(b_tile, step)
                                                           : operand<T, T::b_major, T::swizzle>(b_tile, step);
            if constexpr (T::a_in_registers) {
                wgmma<Storage, T::b_major>(sums, fragments[step], b, turn + step > 0);
            } else {
                const std::uint64_t a = operand<T, T::a_major, T::swizzle>(a_tile, step);
                wgmma<Storage, T::a_major, T::b_major>(sums, a, b, turn + step > 0);
            }
        }
        wgmma_commit();
        wgmma_wait<0>();
        pin(sums);
    }
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < T::columns / 2; ++i) {
        const int row = threadIdx.x / 32 * 16 + lane / 4 + i / 2 % 2 * 8;
        out[row * T::columns + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
    }
    __syncthreads();
    mbarrier_wait(barrier, 0);
}

}  // namespace

#define PRODUCT(name, ...)                                                                                             \
    KERNEL name(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* out, int wrong) { \
        multiply<Traits<__VA_ARGS__>>(a, b, out, wrong);                                                               \
    }
using Bf16 = __nv_bfloat16;
using Fp16 = __half;

// Names: type, columns, swizzle, a, b: k or other along the rows, or registers.
#define COLUMNS(n)                                                       \
    PRODUCT(bf16_##n##_128_k_k, Bf16, n, 128, Major::k, Major::k, false) \
    PRODUCT(fp16_##n##_128_registers_k, Fp16, n, 128, Major::k, Major::k, true)
COLUMNS(8)
COLUMNS(16)
COLUMNS(32)
COLUMNS(64)
COLUMNS(80)
COLUMNS(96)
COLUMNS(112)
COLUMNS(128)
COLUMNS(144)
COLUMNS(160)
COLUMNS(176)
COLUMNS(192)
COLUMNS(256)
#define MAJORS(swizzle)                                                                           \
    PRODUCT(fp16_80_##swizzle##_k_k, Fp16, 80, swizzle, Major::k, Major::k, false)                \
    PRODUCT(bf16_80_##swizzle##_registers_other, Bf16, 80, swizzle, Major::k, Major::other, true) \
    PRODUCT(bf16_96_##swizzle##_k_other, Bf16, 96, swizzle, Major::k, Major::other, false)        \
    PRODUCT(bf16_128_##swizzle##_other_k, Bf16, 128, swizzle, Major::other, Major::k, false)      \
    PRODUCT(bf16_192_##swizzle##_other_other, Bf16, 192, swizzle, Major::other, Major::other, false)
MAJORS(32)
MAJORS(64)
MAJORS(128)
