// Sampling. logits (B, V) -> tokens (B,), logprobs (B,)
//
// A block owns a row, in one launch:
//
//   1. log Σ exp over the row, for the log-probability (tiles/softmax_row.cuh), and with it the largest logit.
//   2. What top_k, top_p and min_p keep is a beginning of the tokens' order, so it is fully told by the key of its last
//      token: a number that grows along the order, logit descending and then id. The range of keys is halved twice a
//      pass over the row, until it holds no more than `max_candidates` tokens; then a thread takes each, and sums what
//      comes before it.
//   3. The token at which the sum of kept weights in order of id exceeds u · Σ: the row is cut into a part for each
//      warp, then the part with the goal is, until it is one token.
//
// Measures (1 for top_k, the weight for top_p and the draw) are integers, weights in units of 2^-weight_bits: sums are
// exact, and so the same in any order. The floor is reading V logits; each pass reads them again, from L1 or L2.
#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>

#include "core/philox.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/pointer.h"
#include "cuda/tiles/softmax_row.cuh"

namespace pygpt::cuda {
namespace {

constexpr int threads = 1024;
constexpr int warps = threads / warp_lanes;
constexpr int parts = 4;             // of the range of keys, in a pass
constexpr int max_candidates = 256;  // each is compared with all
static_assert(max_candidates <= threads && warps == warp_lanes);

using Key = unsigned long long;
using Measure = unsigned long long;

struct Candidate {
    Key key;
    Measure measure;
};

struct Shared {
    LogSumExp softmax[softmax_parts];
    Measure measures[warps][parts];
    int counts[warps][parts];
    std::int64_t token[warps];
    Candidate candidate[max_candidates];
    int candidates;
    Key reached;
};

struct Arguments {
    const float* logits;
    float per_temperature;
    bool greedy, by_count, by_weight, by_share;
    std::int64_t top_k;
    double top_p;
    double min_p_distance;  // temperature · log(min_p): from the largest logit to the least that is kept
    const std::int64_t *seeds, *positions;
    std::int64_t* tokens;
    float* logprobs;
    std::int64_t vocabulary;
    int id_bits;      // of a key
    int weight_bits;  // V weights of 1 fit into a Measure
};

struct Row {
    const float* logits;
    std::int64_t vocabulary;
    float largest, per_temperature, weight_unit;
    int id_bits;

    // Of a logit and an id; keys grow as logits fall.
    __device__ Key key(float logit, Key id) const {
        const unsigned bits = __float_as_uint(logit + 0.0f);  // -0 is 0
        const unsigned ascending = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
        return Key{~ascending} << id_bits | id;
    }
    // That of the last token with at least this logit.
    __device__ Key last_key(float logit) const { return key(logit, (Key{1} << id_bits) - 1); }

    __device__ Measure weight(float logit) const {
        // Finite, also between the ends of the range, since per_temperature may be 0.
        return __float2ull_rn(expf(fmaxf(logit - largest, -FLT_MAX) * per_temperature) * weight_unit);
    }
};

__device__ float at_least_lowest(double value) {
    return static_cast<float>(fmax(value, -static_cast<double>(FLT_MAX)));
}

// The sums of `count` values of each thread over the block; every thread gets them. A barrier must lie between the last
// use of `shared` and this.
template <int count, class T>
__device__ void reduce_block(T (&value)[count], T (*shared)[parts]) {
    static_assert(count <= parts);
#pragma unroll
    for (int i = 0; i < count; ++i) {
        value[i] = reduce_warp(value[i], Sum{});
        if (threadIdx.x % warp_lanes == 0) shared[threadIdx.x / warp_lanes][i] = value[i];
    }
    __syncthreads();
    if (const int i = static_cast<int>(threadIdx.x) / warp_lanes; i < count) {
        const T total = reduce_warp(shared[threadIdx.x % warp_lanes][i], Sum{});
        if (threadIdx.x % warp_lanes == 0) shared[0][i] = total;  // every lane has read
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < count; ++i) value[i] = shared[0][i];
}

// The sum of the measures of all tokens with keys up to `last`.
template <class MeasureOf>
__device__ Measure total(const Row& row, Key last, MeasureOf measure_of, Shared& shared) {
    Measure sum[1] = {0};
    for (std::int64_t id = threadIdx.x; id < row.vocabulary; id += threads) {
        const float logit = row.logits[id];
        if (row.key(logit, static_cast<Key>(id)) <= last) sum[0] += measure_of(logit);
    }
    reduce_block(sum, shared.measures);
    return sum[0];
}

// The smallest key for which the measures of the tokens with keys up to it reach the goal, at most `last`.
template <class MeasureOf>
__device__ Key reach(const Row& row, Measure goal, Key last, MeasureOf measure_of, Shared& shared) {
    Key base = 0;  // the key is one of base .. base + 2^bits - 1; the goal counts from there
    int bits = 32 + row.id_bits + row.id_bits % 2;
    std::int64_t left = row.vocabulary;  // tokens with such keys, at most
    const auto each_token = [&](auto f) {
        for (std::int64_t id = threadIdx.x; id < row.vocabulary; id += threads) {
            const float logit = row.logits[id];
            const Key key = row.key(logit, static_cast<Key>(id));
            if (key >= base && key <= last && (key - base) >> bits == 0) f(key, logit);
        }
    };
    // What was found and summed up before has been read: nothing yet in a first search, where this is not noticed if
    // removed.
    __syncthreads();
    while (left > max_candidates) {
        Measure measures[parts] = {};  // of each quarter of the range
        int counts[parts] = {};
        each_token([&](Key key, float logit) {
            const auto quarter = static_cast<int>((key - base) >> (bits - 2));
            const Measure measure = measure_of(logit);
#pragma unroll
            for (int i = 0; i < parts; ++i) {
                if (quarter == i) measures[i] += measure, ++counts[i];
            }
        });
        reduce_block(measures, shared.measures);  // the barrier in each lies between two rounds of the other
        reduce_block(counts, shared.counts);
        bits -= 2;
        bool found = false;
#pragma unroll
        for (int i = 0; i < parts; ++i) {
            if (found) continue;
            if (measures[i] >= goal || i == parts - 1) {
                found = true;
                left = counts[i];
            } else {
                goal -= measures[i];
                base += Key{1} << bits;
            }
        }
    }
    if (threadIdx.x == 0) shared.candidates = 0, shared.reached = last;
    __syncthreads();
    each_token(
        [&](Key key, float logit) { shared.candidate[atomicAdd(&shared.candidates, 1)] = {key, measure_of(logit)}; });
    __syncthreads();
    const int count = shared.candidates;
    if (const int mine = static_cast<int>(threadIdx.x); mine < count) {
        const Candidate own = shared.candidate[mine];
        Measure before = 0;
        for (int i = 0; i < count; ++i) before += shared.candidate[i].key < own.key ? shared.candidate[i].measure : 0;
        if (before < goal && before + own.measure >= goal) shared.reached = own.key;  // one thread's
    }
    __syncthreads();
    return shared.reached;
}

// The first token at which the sum of the measures of tokens with keys up to `last`, in order of id, exceeds u of all.
template <class MeasureOf>
__device__ std::int64_t draw(const Row& row, double u, Key last, MeasureOf measure_of, Shared& shared) {
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
    std::int64_t first = 0, end = row.vocabulary;
    Measure goal = 0;  // of those from `first` on
    for (bool whole = true; whole || end - first > 1; whole = false) {
        const std::int64_t part = (end - first + warps - 1) / warps;
        const std::int64_t part_end = first + (warp + 1) * part < end ? first + (warp + 1) * part : end;
        Measure sum = 0;
        for (std::int64_t id = first + warp * part + threadIdx.x % warp_lanes; id < part_end; id += warp_lanes) {
            const float logit = row.logits[id];
            if (row.key(logit, static_cast<Key>(id)) <= last) sum += measure_of(logit);
        }
        sum = reduce_warp(sum, Sum{});
        __syncthreads();  // the last sums have been read
        if (threadIdx.x % warp_lanes == 0) shared.measures[warp][0] = sum;
        __syncthreads();
        if (whole) {
            Measure all = 0;
            for (int w = 0; w < warps; ++w) all += shared.measures[w][0];
            goal = static_cast<Measure>(u * static_cast<double>(all));
            if (goal >= all) goal = all - 1;
        }
        int chosen = 0;
        while (chosen < warps - 1 && shared.measures[chosen][0] <= goal) goal -= shared.measures[chosen++][0];
        first += chosen * part;
        end = first + part < end ? first + part : end;
    }
    return first;
}

// In [0, 1), 53 bits.
__device__ double uniform(std::int64_t seed, std::int64_t position) {
    const auto place = static_cast<std::uint64_t>(position);
    const philox::Words words =
        philox::bits(static_cast<std::uint64_t>(seed),
                     {{philox::low(place), philox::high(place), 0, static_cast<std::uint32_t>(philox::Site::sample)}});
    const std::uint64_t bits = std::uint64_t{words.word[0]} << 32 | words.word[1];
    return static_cast<double>(bits >> 11) * 0x1p-53;
}

__device__ Key last_kept(const Arguments& a, const Row& row, Shared& shared) {
    const auto weight = [&](float logit) { return row.weight(logit); };
    Key last = row.last_key(-FLT_MAX);  // -inf is never kept
    if (a.by_count) last = reach(row, static_cast<Measure>(a.top_k), last, [](float) { return Measure{1}; }, shared);
    if (a.by_weight) {
        const Measure all = total(row, last, weight, shared);
        const auto goal = static_cast<Measure>(ceil(a.top_p * static_cast<double>(all)));
        last = reach(row, goal < all ? goal : all, last, weight, shared);
    }
    if (a.by_share) {
        const Key least = row.last_key(at_least_lowest(static_cast<double>(row.largest) + a.min_p_distance));
        last = least < last ? least : last;
    }
    return last;
}

__global__ void __launch_bounds__(threads) sample_forward_kernel(const Arguments a) {
    __shared__ Shared shared;
    const std::int64_t index = blockIdx.x;
    const float* logits = a.logits + index * a.vocabulary;
    const LogSumExp exponentials = log_sum_exp(
        AnyRow<float>{logits, index * a.vocabulary, (gridDim.x - index) * a.vocabulary}, a.vocabulary, shared.softmax);
    if (!(exponentials.sum > 0)) {  // NaN where there is a NaN or +inf, 0 where there is but -inf
        if (threadIdx.x == 0) a.tokens[index] = 0, a.logprobs[index] = nanf("");
        return;
    }
    const Row row{logits,   a.vocabulary, exponentials.maximum, a.per_temperature, ldexpf(1.0f, a.weight_bits),
                  a.id_bits};
    std::int64_t token = a.vocabulary;
    if (a.greedy) {
        for (std::int64_t id = threadIdx.x; id < a.vocabulary && token == a.vocabulary; id += threads) {
            if (logits[id] == row.largest) token = id;
        }
        token = reduce_team(token, shared.token, Smallest{});
    } else {
        const Key last = last_kept(a, row, shared);
        token = draw(
            row, uniform(a.seeds[index], a.positions[index]), last, [&](float logit) { return row.weight(logit); },
            shared);
    }
    if (threadIdx.x == 0) a.tokens[index] = token, a.logprobs[index] = -exponentials.loss(logits[token]);
}

}  // namespace

void sample_forward(const sample::Forward& a) {
    if (a.vocabulary >= std::int64_t{1} << 30) {  // a key has 32 bits of logit and must leave room for a sum
        throw ValueError(text("a vocabulary must be less than 2^30 on CUDA, but is ", a.vocabulary));
    }
    const int id_bits = std::bit_width(static_cast<std::uint64_t>(a.vocabulary));
    const double per_temperature = std::min(1 / a.temperature, static_cast<double>(FLT_MAX));
    const Arguments arguments{
        .logits = pointer<float>(a.logits),
        .per_temperature = static_cast<float>(per_temperature),
        .greedy = a.temperature == 0,
        .by_count = a.top_k && *a.top_k < a.vocabulary,
        .by_weight = a.top_p && *a.top_p < 1,
        .by_share = a.min_p && *a.min_p > 0,
        .top_k = a.top_k.value_or(0),
        .top_p = a.top_p.value_or(1),
        .min_p_distance = a.min_p && *a.min_p > 0 ? a.temperature * std::log(*a.min_p) : 0,
        .seeds = pointer<std::int64_t>(a.seeds),
        .positions = pointer<std::int64_t>(a.positions),
        .tokens = pointer<std::int64_t>(a.tokens),
        .logprobs = pointer<float>(a.logprobs),
        .vocabulary = a.vocabulary,
        .id_bits = id_bits,
        .weight_bits = 62 - id_bits,
    };
    const Launch shape{.grid = static_cast<unsigned>(a.rows), .block = threads};
    launch(sample_forward_kernel, shape, arguments);
}

}  // namespace pygpt::cuda
