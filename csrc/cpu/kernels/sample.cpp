// Sampling. logits (B, V) -> tokens (B,), logprobs (B,)
//
// A task is a row. What top_k, top_p and min_p keep is a beginning of the tokens' order, so it is fully told by its
// last token (Cutoff), and nothing is sorted but a few tokens around that one:
//
//   1. log Σ exp over the row, for the log-probability; the largest logit of each block of 64.
//   2. A bound below which no token can matter, and the tokens above it, out of the blocks that have any:
//      top_k  the k-th largest of the blocks' maxima: at least k tokens reach it
//      top_p  w < (1 - p) · Σ w / 2V: all such tokens together weigh less than top_p may leave out
//   3. The last token: a histogram of the measure (1 for top_k, w for top_p) over equal ranges of the logit finds the
//      range in which the goal is reached; only that range is sorted.
//   4. The sum of the kept weights of each block, in order, in double; the block and then the token at which u · Σ is
//      exceeded. Blocks without kept tokens are passed over.
//
// The floor is reading V logits and V exponentials (and V more where every token is kept).
#include <algorithm>
#include <cfloat>

#include "core/philox.h"
#include "cpu/kernels.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/softmax_row.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t block = 64;  // tokens
constexpr int ranges = 1024;        // of the histogram

template <class Number>
struct Token {
    Number logit;
    std::int64_t id;
    bool before(const Token& other) const { return logit > other.logit || (logit == other.logit && id < other.id); }
};

// The last token that is kept, in the tokens' order.
template <class Number>
using Cutoff = Token<Number>;

// Tokens that may be kept, each with what it adds to the goal. V of each; only `count` are written.
template <class Number>
struct Candidates {
    Number* logit;
    Number* measure;
    std::int64_t* id;
    std::int64_t count = 0;
};

template <class Number>
struct Row {
    const Number* logits;     // (V,)
    std::int64_t vocabulary;  // V
    Number largest;           // of all logits
    Number per_temperature;   // 1 / temperature
    Number* block_largest;    // (blocks,)
    std::int64_t blocks() const { return (vocabulary + block - 1) / block; }

    Vec<Number> weight(Vec<Number> logit) const {
        // Finite, also between the ends of the range, since per_temperature may be 0.
        const auto lowest = Vec<Number>::broadcast(std::numeric_limits<Number>::lowest());
        return exp(max(logit - Vec<Number>::broadcast(largest), lowest) * Vec<Number>::broadcast(per_temperature));
    }
};

template <class Number>
void find_block_maxima(const Row<Number>& row) {
    using V = Vec<Number>;
    const V lowest = V::broadcast(-std::numeric_limits<Number>::infinity());
    for (std::int64_t b = 0; b < row.blocks(); ++b) {
        const Number* logits = row.logits + b * block;
        V largest = lowest;
        each_vector<V>(std::min(block, row.vocabulary - b * block), [&](std::int64_t i, std::int64_t lanes) {
            largest = max(select_first(lanes, V::load(logits + i, lanes), lowest), largest);
        });
        row.block_largest[b] = reduce_max(largest);
    }
}

template <class Number>
std::int64_t first_largest(const Row<Number>& row) {
    std::int64_t token = 0;
    while (row.block_largest[token / block] != row.largest) token += block;
    while (row.logits[token] != row.largest) ++token;
    return token;
}

template <class Number>
void gather(const Row<Number>& row, Number bound, Candidates<Number>& out) {
    out.count = 0;
    for (std::int64_t b = 0; b < row.blocks(); ++b) {
        if (row.block_largest[b] < bound) continue;
        const std::int64_t end = std::min((b + 1) * block, row.vocabulary);
        for (std::int64_t token = b * block; token < end; ++token) {
            out.logit[out.count] = row.logits[token];
            out.id[out.count] = token;
            out.count += row.logits[token] >= bound;
        }
    }
}

template <class Number>
void measure_by_weight(const Row<Number>& row, Candidates<Number>& candidates) {
    using V = Vec<Number>;
    each_vector<V>(candidates.count, [&](std::int64_t i, std::int64_t lanes) {
        row.weight(V::load(candidates.logit + i, lanes)).store(candidates.measure + i, lanes);
    });
}

// The last token of the smallest beginning of the candidates' order whose measures reach the goal (of all, if rounding
// keeps them from reaching it).
template <class Number>
Cutoff<Number> last_token(const Row<Number>& row, const Candidates<Number>& candidates, double goal) {
    const auto distance = [&](std::int64_t i) {  // finite, and 0 for the largest
        return std::min(static_cast<double>(row.largest) - static_cast<double>(candidates.logit[i]), DBL_MAX);
    };
    double farthest = 0;
    for (std::int64_t i = 0; i < candidates.count; ++i) farthest = std::max(farthest, distance(i));
    const double ranges_per_distance = farthest > 0 ? std::min((ranges - 1) / farthest, DBL_MAX) : 0;

    const Scratch range_scratch(static_cast<std::size_t>(candidates.count) * sizeof(std::int32_t));
    auto* range_of = static_cast<std::int32_t*>(range_scratch.data());
    for (std::int64_t i = 0; i < candidates.count; ++i) {
        range_of[i] = static_cast<std::int32_t>(distance(i) * ranges_per_distance);
    }
    double measure_of[ranges] = {};
    for (std::int64_t i = 0; i < candidates.count; ++i) {
        measure_of[range_of[i]] += static_cast<double>(candidates.measure[i]);
    }
    int range = 0;  // where the goal is reached, or the last that adds anything
    double reached = 0, before = 0;
    for (int next = 0; next < ranges && reached < goal; ++next) {
        if (measure_of[next] == 0) continue;
        range = next;
        before = reached;
        reached += measure_of[next];
    }

    struct Member {
        Token<Number> token;
        Number measure;
    };
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < candidates.count; ++i) count += range_of[i] == range;
    const Scratch scratch(static_cast<std::size_t>(count) * sizeof(Member));
    auto* members = static_cast<Member*>(scratch.data());
    for (std::int64_t i = 0, next = 0; i < candidates.count; ++i) {
        if (range_of[i] == range) members[next++] = {{candidates.logit[i], candidates.id[i]}, candidates.measure[i]};
    }
    std::sort(members, members + count, [](const Member& a, const Member& b) { return a.token.before(b.token); });
    std::int64_t last = 0;
    for (reached = before + static_cast<double>(members[0].measure); reached < goal && last + 1 < count;) {
        reached += static_cast<double>(members[++last].measure);
    }
    return members[last].token;
}

// The weights of a block that are kept, 0 for the others; their sum.
template <class Number>
Number kept_weights(const Row<Number>& row, const Cutoff<Number>& cutoff, std::int64_t b, Number* weights) {
    using V = Vec<Number>;
    const V limit = V::broadcast(cutoff.logit);
    const std::int64_t first = b * block;
    V sum = V::zero();
    each_vector<V>(std::min(block, row.vocabulary - first), [&](std::int64_t i, std::int64_t lanes) {
        const V logit = V::load(row.logits + first + i, lanes);
        const V weight = row.weight(logit);
        const V to_last = select_less(logit, limit, V::zero(), weight);  // up to the last token's id: at least as high
        const V after = select_less(limit, logit, weight, V::zero());    // beyond it: higher
        const std::int64_t up_to_last = std::clamp<std::int64_t>(cutoff.id + 1 - first - i, 0, V::lanes);
        const V kept = select_first(lanes, select_first(up_to_last, to_last, after), V::zero());
        kept.store(weights + i, lanes);
        sum = sum + kept;
    });
    return reduce_add(sum);
}

template <class Number>
std::int64_t draw(const Row<Number>& row, const Cutoff<Number>& cutoff, double uniform) {
    const Scratch scratch(static_cast<std::size_t>(row.blocks()) * sizeof(Number));
    auto* sums = static_cast<Number*>(scratch.data());
    Number weights[block];
    double total = 0;
    for (std::int64_t b = 0; b < row.blocks(); ++b) {
        sums[b] = row.block_largest[b] < cutoff.logit ? Number(0) : kept_weights(row, cutoff, b, weights);
        total += static_cast<double>(sums[b]);
    }
    const double goal = uniform * total;
    std::int64_t b = 0;
    double passed = 0;
    for (; b + 1 < row.blocks() && passed + static_cast<double>(sums[b]) <= goal; ++b)
        passed += static_cast<double>(sums[b]);
    while (sums[b] == 0) passed -= static_cast<double>(sums[--b]);  // rounding put the goal past the last kept token
    kept_weights(row, cutoff, b, weights);
    std::int64_t chosen = 0;
    for (std::int64_t i = 0; i < std::min(block, row.vocabulary - b * block); ++i) {
        if (weights[i] == 0) continue;
        chosen = b * block + i;
        passed += static_cast<double>(weights[i]);
        if (passed > goal) break;
    }
    return chosen;
}

template <class Number>
Number at_least_lowest(double value) {
    return static_cast<Number>(std::max(value, static_cast<double>(std::numeric_limits<Number>::lowest())));
}

template <class Number>
Cutoff<Number> find_cutoff(const sample::Forward& a, const Row<Number>& row) {
    const std::int64_t vocabulary = row.vocabulary;
    const bool by_count = a.top_k && *a.top_k < vocabulary;
    const bool by_weight = a.top_p && *a.top_p < 1;
    // -inf is never kept: its weight is 0.
    Cutoff<Number> cutoff{std::numeric_limits<Number>::lowest(), vocabulary};
    if (by_count || by_weight) {
        const auto size = static_cast<std::size_t>(vocabulary);
        const Scratch scratch(size * (2 * sizeof(Number) + sizeof(std::int64_t)));
        auto* ids = static_cast<std::int64_t*>(scratch.data());
        auto* numbers = reinterpret_cast<Number*>(ids + vocabulary);
        Candidates<Number> candidates{numbers, numbers + vocabulary, ids};
        double total = 0;
        if (by_count) {
            Number bound = std::numeric_limits<Number>::lowest();
            if (*a.top_k <= row.blocks()) {
                std::copy(row.block_largest, row.block_largest + row.blocks(), numbers);
                std::nth_element(numbers, numbers + (*a.top_k - 1), numbers + row.blocks(),
                                 [](Number x, Number y) { return x > y; });
                bound = std::max(bound, numbers[*a.top_k - 1]);
            }
            gather(row, bound, candidates);
            std::fill(candidates.measure, candidates.measure + candidates.count, Number(1));
            cutoff = last_token(row, candidates, static_cast<double>(*a.top_k));
        }
        if (by_weight) {
            if (!by_count) {
                Number weights[block];
                for (std::int64_t b = 0; b < row.blocks(); ++b) {
                    total += static_cast<double>(kept_weights(row, cutoff, b, weights));
                }
                const double least = (1 - *a.top_p) * total / (2 * static_cast<double>(vocabulary));
                const double bound = static_cast<double>(row.largest) + a.temperature * std::log(least);
                gather(row, at_least_lowest<Number>(bound), candidates);
                measure_by_weight(row, candidates);
            } else {
                measure_by_weight(row, candidates);
                std::int64_t kept = 0;
                for (std::int64_t i = 0; i < candidates.count; ++i) {
                    const Token<Number> token{candidates.logit[i], candidates.id[i]};
                    if (cutoff.before(token)) continue;
                    total += static_cast<double>(candidates.measure[i]);
                    candidates.logit[kept] = token.logit;
                    candidates.id[kept] = token.id;
                    candidates.measure[kept++] = candidates.measure[i];
                }
                candidates.count = kept;
            }
            cutoff = last_token(row, candidates, *a.top_p * total);
        }
    }
    if (a.min_p && *a.min_p > 0) {
        const double bound = static_cast<double>(row.largest) + a.temperature * std::log(*a.min_p);
        const Cutoff<Number> least{at_least_lowest<Number>(bound), vocabulary};
        if (least.before(cutoff)) cutoff = least;
    }
    return cutoff;
}

// In [0, 1), 53 bits.
double uniform(std::int64_t seed, std::int64_t position) {
    const auto place = static_cast<std::uint64_t>(position);
    const philox::Words words =
        philox::bits(static_cast<std::uint64_t>(seed),
                     {{philox::low(place), philox::high(place), 0, static_cast<std::uint32_t>(philox::Site::sample)}});
    const std::uint64_t bits = std::uint64_t{words.word[0]} << 32 | words.word[1];
    return static_cast<double>(bits >> 11) * 0x1p-53;
}

template <class Number>
void sample_row(const sample::Forward& a, std::int64_t index) {
    const Number* logits = row_of<const Number>(a.logits, index, a.vocabulary);
    auto* token = static_cast<std::int64_t*>(a.tokens.data) + index;
    auto* logprob = static_cast<Number*>(a.logprobs.data) + index;
    const auto exponentials = log_sum_exp<Vec<Number>>(logits, a.vocabulary);
    if (!(exponentials.sum > 0)) {  // NaN where there is a NaN or +inf, 0 where there is but -inf
        *token = 0;
        *logprob = std::numeric_limits<Number>::quiet_NaN();
        return;
    }

    Row<Number> row{};
    row.logits = logits;
    row.vocabulary = a.vocabulary;
    row.largest = exponentials.maximum;
    row.per_temperature =
        static_cast<Number>(std::min(1 / a.temperature, static_cast<double>(std::numeric_limits<Number>::max())));
    const Scratch scratch(static_cast<std::size_t>(row.blocks()) * sizeof(Number));
    row.block_largest = static_cast<Number*>(scratch.data());
    find_block_maxima(row);

    if (a.temperature == 0) {
        *token = first_largest(row);
    } else {
        const auto seed = static_cast<const std::int64_t*>(a.seeds.data)[index];
        const auto position = static_cast<const std::int64_t*>(a.positions.data)[index];
        *token = draw(row, find_cutoff(a, row), uniform(seed, position));
    }
    *logprob = -exponentials.loss(logits[*token]);
}

}  // namespace

template <>
void sample_forward<this_isa>(const sample::Forward& a) {
    with_storage(a.logits.dtype, [&](auto storage) {
        using Number = decltype(storage);
        if constexpr (std::is_floating_point_v<Number>) {  // logits are never rounded to 16 bits
            parallel_for(a.rows, [&](std::int64_t row) { sample_row<Number>(a, row); });
        }
    });
}

}  // namespace pygpt::cpu
