// Attention backward on Hopper, by wgmma and tensor copies: the gradients of q, k and v. Contract: ops/attention.h.
//
// The weights are computed again from the scores and lse, tile by tile. With o = grad_out, row by row:
//
//     p = 2^(scores - lse);  delta = o · out - grad_lse;  s = p · (o · vᵀ - delta)      the gradient of the scores
//     grad_v += pᵀ · o;  grad_k += scale · sᵀ · q;  grad_q += scale · s · k              (s times the softcap's slope)
//
// First a kernel makes what the others need of a row. Then either one kernel makes all three, with the floor of five
// products, and adds to grad_q in turns (backward_fused_sm90.cuh), or two make them apart, with seven, and wait for
// nobody (backward_separate_sm90.cuh). Both sum in the order of a sequence's tiles, with no atomic additions; each has
// its own bits, so that dtype, head size and kind of visibility alone choose between them.
#include "cuda/attention/backward_fused_sm90.cuh"
#include "cuda/attention/backward_separate_sm90.cuh"
#include "cuda/ptx/load.cuh"

namespace pygpt::cuda {
namespace {

// ---- facts ----

constexpr int facts_threads = 256;
constexpr int facts_lanes = 8;     // of a row
constexpr int facts_unrolled = 4;  // rows of a thread
constexpr int facts_rows = facts_threads / facts_lanes * facts_unrolled;

template <class Storage>
struct FactsArguments {
    KeyRange keys;
    Vectors<const Storage> grad_out, out;
    const float *lse, *grad_lse;  // grad_lse may be null
    Facts* facts;                 // (B, H, T)
    std::int64_t T;
    unsigned H;
    int D;
};

// The document that a query is in: the last that begins at or before it.
__device__ inline Sequence sequence_of(const KeyRange& keys, std::int64_t batch, std::int64_t query) {
    if (!keys.cu_seqlens) return keys.sequence(batch);
    std::int64_t low = 0, high = keys.documents;
    while (high - low > 1) {
        const std::int64_t middle = (low + high) / 2;
        if (keys.cu_seqlens[middle] <= query)
            low = middle;
        else
            high = middle;
    }
    return keys.sequence(low);
}

// 16 bytes of a vector, with zeros for what is beyond D.
template <class Storage>
__device__ uint4 chunk_of(const Vectors<const Storage>& tensor, const Storage* vector, int column, int D) {
    if (tensor.in_chunks) return ptx::load_once(vector + column);
    alignas(16) Storage chunk[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) chunk[i] = column + i < D ? vector[column + i] : from_float<Storage>(0);
    return *reinterpret_cast<const uint4*>(chunk);
}

// A block's rows are queries of one head; blocks of a query's heads follow one another, as they lie in memory.
template <class Storage>
__global__ void __launch_bounds__(facts_threads)
    attention_facts_sm90(const __grid_constant__ FactsArguments<Storage> a) {
    const unsigned tiles = static_cast<unsigned>((a.T + facts_rows - 1) / facts_rows);
    const unsigned head = blockIdx.x % a.H, tile = blockIdx.x / a.H % tiles, batch = blockIdx.x / a.H / tiles;
    const int lane = static_cast<int>(threadIdx.x) % facts_lanes;
    const std::int64_t first = std::int64_t{tile} * facts_rows + threadIdx.x / facts_lanes;
    float delta[facts_unrolled] = {};
    for (int column = lane * 8; column < a.D; column += facts_lanes * 8) {
        uint4 grad[facts_unrolled] = {}, out[facts_unrolled] = {};
#pragma unroll
        for (int i = 0; i < facts_unrolled; ++i) {
            const std::int64_t query = first + i * (facts_rows / facts_unrolled);
            if (query >= a.T) continue;
            grad[i] = chunk_of(a.grad_out, a.grad_out.at(batch, query, head), column, a.D);
            out[i] = chunk_of(a.out, a.out.at(batch, query, head), column, a.D);
        }
#pragma unroll
        for (int i = 0; i < facts_unrolled; ++i) {
            const auto* const left = reinterpret_cast<const Storage*>(&grad[i]);
            const auto* const right = reinterpret_cast<const Storage*>(&out[i]);
#pragma unroll
            for (int e = 0; e < 8; ++e) delta[i] = fmaf(to_float(left[e]), to_float(right[e]), delta[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < facts_unrolled; ++i) {
#pragma unroll
        for (int step = 1; step < facts_lanes; step *= 2) delta[i] += __shfl_xor_sync(all_lanes, delta[i], step);
    }
    if (lane >= facts_unrolled) return;
    const std::int64_t query = first + lane * (facts_rows / facts_unrolled);  // one of the rows for each of the lanes
    if (query >= a.T) return;
    float own = delta[0];
#pragma unroll
    for (int i = 1; i < facts_unrolled; ++i) own = lane == i ? delta[i] : own;
    constexpr float log2_e = 1.442695040888963407f;
    const std::int64_t row = (std::int64_t{batch} * a.H + head) * a.T + query;
    const float lse = a.lse[row];
    const Sequence sequence = sequence_of(a.keys, batch, query);
    const Keys keys = keys_of(a.keys, sequence, query);
    a.facts[row] = {lse == -infinity ? infinity : lse * log2_e, a.grad_lse ? own - a.grad_lse[row] : own, keys.begin,
                    keys.end};
}

// ---- the choice ----

using BackwardHeadDims = std::integer_sequence<int, 64, 96, 128>;

// At a head size of 128 the one kernel's tiles leave no registers to overlap what it adds with the next products.
// Measured, in us of forward and backward, one kernel and two, on an H100 80GB HBM3 in bf16, by (B, T, H, D):
//
//     full    (8, 2048, 16, 64)  1219  1384    (1, 16384, 16, 64)  7907  9618    (32, 512, 16, 64)   510   512
//             (8, 2048, 16, 128) 1944  2305    (2, 8192, 16, 128)  7379  7977    (32, 512, 16, 128)  921   793
//     causal  (8, 2048, 16, 64)   849   867    (1, 16384, 16, 64)  4703  5117    (32, 512, 16, 64)   392   445
//             (8, 2048, 16, 128) 1566  1240    (2, 8192, 16, 128)  4603  4175    (32, 512, 16, 128)  659   638
//
// when the one kernel still began with the shortest tiles under a diagonal.

// Whether no diagonal limits what a query sees.
inline bool sees_all(const KeyRange& keys) {
    return keys.before >= KeyRange::unlimited && keys.after >= KeyRange::unlimited;
}

}  // namespace

void attention_backward_sm90(const attention::Backward& a) {
    with_16_bits(a.problem.q.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        const Problem& p = a.problem;
        const std::int64_t rows = p.B * p.H * p.T;
        if (rows == 0 && p.B * p.S == 0) return;
        auto* const facts = scratch<Facts>(static_cast<std::size_t>(rows + 2 * group_rows));
        const FactsArguments<Storage> of_rows{p.keys,
                                              Vectors<const Storage>(a.grad_out),
                                              Vectors<const Storage>(a.out),
                                              static_cast<const float*>(a.lse.data),
                                              a.grad_lse ? static_cast<const float*>(a.grad_lse->data) : nullptr,
                                              facts,
                                              p.T,
                                              static_cast<unsigned>(p.H),
                                              static_cast<int>(p.D)};
        const auto tiles_of_facts = static_cast<unsigned>(p.B * p.H * divide_up(p.T, facts_rows));
        launch(attention_facts_sm90<Storage>, {tiles_of_facts, facts_threads}, of_rows);

        const GradientInputs inputs{for_tensor_copies(p.q), for_tensor_copies(p.k), for_tensor_copies(p.v),
                                    for_tensor_copies(a.grad_out), facts};
        with_head_dim(p.D, BackwardHeadDims{}, [&](auto head_dim) {
            if constexpr (head_dim() == 64) {
                backward_in_one<Storage, 64>(a, inputs);
            } else if constexpr (head_dim() == 128) {
                if (sees_all(p.keys)) {
                    backward_in_one<Storage, 128>(a, inputs);
                } else {
                    backward_in_two<Storage, 128>(a, inputs);
                }
            } else {
                backward_in_two<Storage, head_dim()>(a, inputs);
            }
        });
    });
}

}  // namespace pygpt::cuda
