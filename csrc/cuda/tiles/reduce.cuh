// Values of many threads made one, in an order that the shape of the block alone decides: lanes as a tree, then warps
// one after the other. Every thread gets the result, with the same bits.
#ifndef PYGPT_CUDA_TILES_REDUCE_CUH
#define PYGPT_CUDA_TILES_REDUCE_CUH

namespace pygpt::cuda {

constexpr int warp_lanes = 32;
constexpr unsigned all_lanes = 0xffffffff;
constexpr int max_warps = 32;  // of a block

__device__ inline float2 operator+(float2 a, float2 b) {
    return {a.x + b.x, a.y + b.y};
}

template <class T>
__device__ T from_lane_at(int distance, T value) {
    return __shfl_xor_sync(all_lanes, value, distance);
}
template <>
__device__ inline float2 from_lane_at(int distance, float2 value) {
    return {from_lane_at(distance, value.x), from_lane_at(distance, value.y)};
}

// `combine` must be commutative.
template <class T, class Combine>
__device__ T reduce_warp(T value, Combine combine) {
#pragma unroll
    for (int distance = warp_lanes / 2; distance > 0; distance /= 2) {
        value = combine(value, from_lane_at(distance, value));
    }
    return value;
}

struct Sum {
    template <class T>
    __device__ T operator()(T a, T b) const {
        return a + b;
    }
};
// Of numbers: NaN is passed over.
struct Largest {
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Smallest {
    template <class T>
    __device__ T operator()(T a, T b) const {
        return a < b ? a : b;
    }
};

// Over the blockDim.x threads that share threadIdx.y, whole warps; all threads of the block take part. `shared` holds
// a value for each warp of the block; who uses it again puts a barrier in between.
template <class T, class Combine>
__device__ T reduce_team(T value, T* shared, Combine combine) {
    value = reduce_warp(value, combine);
    const int warps = static_cast<int>(blockDim.x) / warp_lanes;
    if (warps == 1) return value;
    T* team = shared + static_cast<int>(threadIdx.y) * warps;
    if (threadIdx.x % warp_lanes == 0) team[threadIdx.x / warp_lanes] = value;
    __syncthreads();
    value = team[0];
    for (int warp = 1; warp < warps; ++warp) value = combine(value, team[warp]);
    return value;
}

}  // namespace pygpt::cuda

#endif
