// From a product q·k to a score, a weight and the score's gradient; which weights dropout keeps.
//
// The functions stand in loops over a lane's accumulators, unrolled; options are branches that all lanes take alike.
// Where there is neither softcap nor bias nor mask (`plain`), a tile that all rows see whole needs no comparison: the
// same values come out, since a seen key's score is the same product by the same factor.
#ifndef PYGPT_CUDA_ATTENTION_SCORES_CUH
#define PYGPT_CUDA_ATTENTION_SCORES_CUH

#include "core/philox.h"
#include "cuda/attention/products.cuh"

namespace pygpt::cuda {
namespace {

constexpr float log2_e = 1.442695040888963407f;
constexpr float log2_e_rest = 1.925963033500e-8f;  // log2 e - log2_e

// Which element of the tile (row, key) an accumulator of this lane is; with keys as the accumulators' rows, or not.
template <bool keys_own>
struct Element {
    int row, key;
    __device__ Element(int own_first, int i, int j, int e) {
        const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
        const int own = own_first + 16 * i + lane / 4 + e / 2 * 8;
        const int other = 8 * j + lane % 4 * 2 + e % 2;
        row = keys_own ? other : own;
        key = keys_own ? own : other;
    }
};

// The lowest finite number, which some write for "hidden", stays finite when it is turned into units of log 2: a row of
// nothing else is a plain mean, not a row that sees nothing.
template <class Storage>
__device__ float bias_at(const Added& bias, std::int64_t at) {
    constexpr float largest = 3.40282347e38f;
    const float value = bias.is_float32 ? static_cast<const float*>(bias.data)[at]
                                        : to_float(static_cast<const Storage*>(bias.data)[at]);
    if (value < -largest) return value;
    return value < -largest / 2 ? -largest / 2 : value > largest / 2 ? largest / 2 : value;  // and NaN is NaN
}

// The score of a key (counted from the sequence's first), in units of log 2; `slope` becomes the derivative of the
// capped score by the uncapped one.
template <class Storage>
__device__ float score_of(const ScoreOptions& o, const RowFacts& row, int key, float product, float& slope) {
    slope = 1;
    if (key < row.begin || key >= row.end) return -infinity;  // and no memory is read for it
    float x;
    if (o.capped) {
        const float t = tanhf(product * o.scale_cap);
        slope = fmaf(-t, t, 1.0f);
        x = t * o.cap_log2;
    } else {
        x = product * o.scale_log2;
    }
    if (o.bias.data) x = fmaf(bias_at<Storage>(o.bias, row.bias + key * o.bias.key), log2_e, x);
    if (o.mask.data && !static_cast<const std::uint8_t*>(o.mask.data)[row.mask + key * o.mask.key]) x = -infinity;
    return x;
}

// Turns products of a tile, whose first key is `base`, into scores.
template <class Storage, int fragments, int blocks>
__device__ void finish_scores(const ScoreOptions& o, const RowFacts* facts, int own_first, int base, bool all_seen,
                              Accumulators<fragments, blocks>& x) {
    if (!o.plain) {
#pragma unroll 1
        for (int j = 0; j < blocks; ++j) {
#pragma unroll
            for (int i = 0; i < fragments; ++i) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const Element<false> at(own_first, i, j, e);
                    float slope;
                    x[i][0][e] = score_of<Storage>(o, facts[at.row], base + at.key, x[i][0][e], slope);
                }
            }
            turn(x);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < fragments; ++i) {
#pragma unroll
        for (int j = 0; j < blocks; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) x[i][j][e] *= o.scale_log2;
        }
    }
    if (all_seen) return;
#pragma unroll
    for (int i = 0; i < fragments; ++i) {
#pragma unroll
        for (int j = 0; j < blocks; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const Element<false> at(own_first, i, j, e);
                const RowFacts& row = facts[at.row];
                if (base + at.key < row.begin || base + at.key >= row.end) x[i][j][e] = -infinity;
            }
        }
    }
}

// The weight of a score. At most 1: of large scores (a row of nothing but -1e30, say) what was saved of the log-sum-exp
// is rounded by more than exp2 could bear.
__device__ inline float weight_of(float score, float lse_high, float lse_low) {
    const float x = (score - lse_high) - lse_low;
    return ptx::exp2_approx(x > 0 ? 0.0f : x);  // fminf would lose NaN
}

// Products q·k become weights, and products grad_out·v gradients of the scores, or with `uncapped` those of the scores
// before the softcap. A weight of zero has no gradient, whatever the other factor is: a hidden key's memory may hold
// anything.
template <bool keys_own, class Storage, int blocks>
__device__ void finish_gradients(const ScoreOptions& o, const RowFacts* facts, int own_first, int base, bool all_seen,
                                 bool uncapped, Accumulators<1, blocks>& x, Accumulators<1, blocks>& grad) {
    if (!o.plain) {
#pragma unroll 1
        for (int j = 0; j < blocks; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const Element<keys_own> at(own_first, 0, j, e);
                const RowFacts& row = facts[at.row];
                float slope;
                const float score = score_of<Storage>(o, row, base + at.key, x[0][0][e], slope);
                const float weight = weight_of(score, row.lse_high, row.lse_low);
                x[0][0][e] = weight;
                grad[0][0][e] = weight == 0 ? 0 : weight * (grad[0][0][e] - row.delta) * (uncapped ? slope : 1.0f);
            }
            turn(x);
            turn(grad);
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < blocks; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) x[0][j][e] *= o.scale_log2;
    }
    if (!all_seen) {
#pragma unroll
        for (int j = 0; j < blocks; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const Element<keys_own> at(own_first, 0, j, e);
                const RowFacts& row = facts[at.row];
                if (base + at.key < row.begin || base + at.key >= row.end) x[0][j][e] = -infinity;
            }
        }
    }
#pragma unroll
    for (int j = 0; j < blocks; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const RowFacts& row = facts[Element<keys_own>(own_first, 0, j, e).row];
            const float weight = weight_of(x[0][j][e], row.lse_high, row.lse_low);
            x[0][j][e] = weight;
            grad[0][j][e] = weight == 0 ? 0 : weight * (grad[0][j][e] - row.delta);
        }
    }
}

// A row's log-sum-exp in units of log 2, in two parts, so that it is exact to the bits that were saved.
struct Lse {
    float high, low;
    __device__ explicit Lse(float saved) {
        const float from = saved == -infinity ? 0 : saved;  // nothing is seen, and every score is -inf too
        high = from * log2_e;
        low = fmaf(from, log2_e, -high) + from * log2_e_rest;
    }
};

// ---- dropout ----

__device__ inline std::uint64_t dropout_key(const ScoreOptions& o, std::int64_t sequence) {
    if (!o.drops) return 0;
    return o.one_seed ? static_cast<std::uint64_t>(o.seeds[0]) + static_cast<std::uint64_t>(sequence)
                      : static_cast<std::uint64_t>(o.seeds[sequence]);
}

// Bit w: whether word w of a block is kept.
__device__ inline unsigned kept_words(const ScoreOptions& o, std::uint64_t key, std::uint32_t block,
                                      std::uint32_t position, int head) {
    const philox::Words bits = philox::bits(key, {{block, position, static_cast<std::uint32_t>(head),
                                                   static_cast<std::uint32_t>(philox::Site::attention)}});
    unsigned kept = 0;
#pragma unroll
    for (int word = 0; word < 4; ++word) kept |= (bits.word[word] >= o.drop_below ? 1u : 0u) << word;
    return kept;
}

// The 16 keys from a multiple of 16 on are word (key / 16) % 4 of 16 blocks.
__device__ inline std::uint32_t first_block(int key) {
    return static_cast<std::uint32_t>(key / philox::elements_per_group * philox::blocks_per_group);
}
__device__ inline int word_of(int key) {
    return key / philox::blocks_per_group % 4;
}

// Which of a lane's accumulators are kept, where rows are the accumulators' rows.
template <int fragments, int blocks>
struct Kept {
    unsigned bits[fragments][2] = {};  // of row g and row g + 8: bit 2 · block + column

    __device__ Kept(const ScoreOptions& o, std::uint64_t key, const RowFacts* facts, int own_first, int base) {
        const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
#pragma unroll
        for (int i = 0; i < fragments; ++i) {
#pragma unroll 1
            for (int half = 0; half < 2; ++half) {  // one at a time: two take registers that there are not
                const RowFacts& row = facts[own_first + 16 * i + 8 * half + lane / 4];
                unsigned mine = 0;
#pragma unroll 1
                for (int column = 0; column < 4; ++column) {  // of the four that a lane has in 16 keys
                    const int in_16 = column / 2 * 8 + lane % 4 * 2 + column % 2;
                    const unsigned words =
                        kept_words(o, key, first_block(base) + in_16, row.position, row.head) >> word_of(base);
#pragma unroll
                    for (int sixteen = 0; sixteen < blocks / 2; ++sixteen) {
                        mine |= (words >> sixteen & 1u) << (4 * sixteen + column);
                    }
                }
                bits[i][0] = bits[i][1];  // turns, as accumulators do
                bits[i][1] = mine;
            }
        }
    }
    __device__ bool operator()(int i, int j, int e) const { return bits[i][e / 2] >> (2 * j + e % 2) & 1; }
};

// The same where keys are: a block's tile of decisions, which its threads make together, each of them once.
template <int rows>
struct KeptTile {
    std::uint8_t words[rows][philox::blocks_per_group];  // of 64 keys

    __device__ void make(const ScoreOptions& o, std::uint64_t key, const RowFacts* facts, int base, int threads) {
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x); i < rows * philox::blocks_per_group; i += threads) {
            const int row = i / philox::blocks_per_group, block = i % philox::blocks_per_group;
            words[row][block] = static_cast<std::uint8_t>(
                kept_words(o, key, first_block(base) + block, facts[row].position, facts[row].head));
        }
    }
    __device__ bool operator()(int row, int key) const {
        return words[row][key % philox::blocks_per_group] >> word_of(key) & 1;
    }
};

// x · factor where kept, else 0
template <int fragments, int blocks, class KeptAt>
__device__ void drop(Accumulators<fragments, blocks>& x, float factor, KeptAt kept) {
#pragma unroll
    for (int i = 0; i < fragments; ++i) {
#pragma unroll
        for (int j = 0; j < blocks; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) x[i][j][e] = kept(i, j, e) ? x[i][j][e] * factor : 0;
        }
    }
}

}  // namespace
}  // namespace pygpt::cuda

#endif
