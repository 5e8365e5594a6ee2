// Attention forward, and the weights on request. Contract: ops/attention.h.
//
// A task is a block of rows (attention_tiles.h) of one kv head. It walks over the key tiles that its rows see, packs
// each once, and for every row tile does
//
//     scores (rows, keys) = q · kᵀ;  new maximum m;  p = 2^(scores - m);  sum = sum · 2^(old m - m) + p
//     out (rows, D) = out · 2^(old m - m) + p · v
//
// (Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018.) A key tile that a row does not see leaves
// it as it is, to the bit: m stays, the factor is 1, p is 0. So a row's bits depend on the keys it sees alone, and how
// rows are cut into blocks is free to suit the number of threads.
//
// Floor: 4 · T · S · D operations a head (half with causal); q, k, v read and out written once.
#include <cmath>
#include <vector>

#include "cpu/kernels/attention_tiles.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t largest_block = 8 * row_tile;  // of rows: half of them take a tenth longer, to pack keys
constexpr std::int64_t tasks_per_thread = 4;
constexpr int rows_at_once = 4 * group_rows;  // in a step: while one row's instructions wait, others' go on

template <class Number>
constexpr std::int64_t padded_rows = ceil_div(rows_at_once, Vec<Number>::lanes) * Vec<Number>::lanes;

// A block's memory in the cache.
template <class Storage>
struct Block {
    using Number = compute_t<Storage>;
    using T = factor_t<Storage>;  // of which there are half as many if they are pairs

    std::int64_t width;  // of a row of v and out: D in whole vectors
    std::int64_t steps;  // of the products q · kᵀ
    T* q;                // (rows, D)
    T* k;                // (D, key_tile)
    T* v;                // (key_tile, width)
    Number* scores;      // (rows_at_once, key_tile)
    T* weights;          // p as factors: (rows_at_once, key_tile), of pairs in half of each row
    Number* out;         // (rows, width)
    Number* maximum;     // (rows,) in units of log 2
    Number* sum;         // (rows, lanes)
    Number* rescale;     // (rows_at_once,) in whole vectors
    Span* keys;          // (rows,)

    Block(Divider& memory, std::int64_t rows, std::int64_t D)
        : width(ceil_div(D, Vec<Number>::lanes) * Vec<Number>::lanes),
          steps(steps_of<Storage>(D)),
          q(memory.take<T>(rows * steps)),
          k(memory.take<T>(steps * key_tile)),
          v(memory.take<T>(steps_of<Storage>(key_tile) * width)),
          scores(memory.take<Number>(rows_at_once * key_tile)),
          weights(memory.take<T>(rows_at_once * key_tile)),
          out(memory.take<Number>(rows * width)),
          maximum(memory.take<Number>(rows)),
          sum(memory.take<Number>(rows * Vec<Number>::lanes)),
          rescale(memory.take<Number>(padded_rows<Number>)),
          keys(memory.take<Span>(rows)) {}

    void load_query(const Storage* from, std::int64_t row, std::int64_t D) const {
        pack_factors(from, D, q + row * steps);
    }
    // scores = q · kᵀ for a group of rows and the keys of the span, which are packed
    void multiply_keys(std::int64_t row, std::int64_t group, Span span) const {
        multiply<To::set>(group, span.size() / Vec<Number>::lanes, {0, steps}, Left<T>{q + row * steps, steps, 1},
                          Right<T>{k + span.begin, key_tile}, Out<Number>{scores + span.begin, key_tile});
    }
};

// A row's sum of powers, lane by lane, to which a key tile's are added: one by one, but where a vector has one lane in
// four chains, since the error of 64 numbers added one by one shows.
template <class V>
struct PowerSum {
    static constexpr std::int64_t chains = V::lanes == 1 ? 4 : 1;
    V chain[chains];

    explicit PowerSum(V before) : chain{before} {
        for (std::int64_t i = 1; i < chains; ++i) chain[i] = V::zero();
    }
    void add(std::int64_t key, V power) { chain[key % chains] = chain[key % chains] + power; }
    V total() const {
        if constexpr (chains == 1) return chain[0];
        return (chain[0] + chain[1]) + (chain[2] + chain[3]);
    }
};

// The same for few rows, whose keys are not.
template <class Storage, int... counts>
void multiply_keys_of_few(std::integer_sequence<int, counts...>, const Head<Storage>& head, std::int64_t base,
                          Span seen, std::int64_t rows, const Block<Storage>& block) {
    constexpr std::array each{multiply_turned_keys<Storage, counts + 1>...};
    each[static_cast<std::size_t>(rows - 1)](head, base, seen, block.q, block.scores);
}

template <class Storage>
void forward_rows(const attention::Forward& a, const Scores<Storage>& scores, const Head<Storage>& head,
                  std::int64_t first_row, std::int64_t rows) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    using T = factor_t<Storage>;
    const Problem& p = a.problem;
    const std::int64_t D = p.D;
    Divider count;
    Block<Storage>(count, rows, D);
    const Scratch scratch(count.used());
    Divider memory(scratch.data());
    const Block<Storage> block(memory, rows, D);

    for (std::int64_t row = 0; row < rows; ++row) {
        if (row + rows_ahead < rows) prefetch_row(head.row_of(p.q, first_row + row + rows_ahead), D);
        block.load_query(head.row_of(p.q, first_row + row), row, D);
        block.keys[row] = head.keys(first_row + row);
    }
    std::fill_n(block.out, rows * block.width, Number(0));
    std::fill_n(block.maximum, rows, -infinity<Number>);
    std::fill_n(block.sum, rows * V::lanes, Number(0));

    const Span all = unite(block.keys, rows);
    const std::int64_t origin = head.sequence.keys.begin;
    const std::int64_t first_tile = all.empty() ? 0 : (all.begin - origin) / key_tile;
    for (std::int64_t base = origin + first_tile * key_tile; base < all.end; base += key_tile) {
        const Span seen = in_tile(all, base);
        const bool few = rows <= group_rows;  // as when a text is written, token by token
        const bool v_in_place = few && seen.size() == key_tile && D == block.width;
        if (!few) pack_keys_transposed(head, p.k, base, seen, block.k);
        if (!v_in_place) pack_key_factors(head, p.v, base, seen, block.v, block.width);
        for (std::int64_t row = 0; row < rows; row += rows_at_once) {
            prefetch_keys(head, base + key_tile, all.end, row / rows_at_once, ceil_div(rows, rows_at_once));
            const std::int64_t group = std::min<std::int64_t>(rows_at_once, rows - row);
            const Span span = whole_vectors<V>(in_tile(unite(block.keys + row, group), base));
            if (span.empty()) continue;
            if (few) {
                multiply_keys_of_few(std::make_integer_sequence<int, group_rows>(), head, base, seen, rows, block);
            } else {
                block.multiply_keys(row, group, span);
            }
            V most[rows_at_once];
            for (std::int64_t r = 0; r < group; ++r) {
                most[r] = scores.finish(head, first_row + row + r, block.keys[row + r], base, span,
                                        block.scores + r * key_tile, nullptr);
            }
            Number from[rows_at_once];
            Number grown[padded_rows<Number>] = {};
            for (std::int64_t r = 0; r < group; ++r) {
                const Number before = block.maximum[row + r];
                const Number now = std::max(before, reduce_max(most[r]) * scores.unit());
                from[r] = now == -infinity<Number> ? Number(0) : now;
                grown[r] = before - from[r];
                block.maximum[row + r] = now;
            }
            for (std::int64_t r = 0; r < padded_rows<Number>; r += V::lanes)
                exp2_at_most_one(V::load(grown + r)).store(block.rescale + r);
            const V unit = V::broadcast(scores.unit());
            for (std::int64_t r = 0; r < group; ++r) {
                const Number* x = block.scores + r * key_tile;
                const V shift = V::broadcast(-from[r]);
                PowerSum<V> sum(V::load(block.sum + (row + r) * V::lanes) * V::broadcast(block.rescale[r]));
                const auto weight = [&](std::int64_t j) __attribute__((always_inline)) {
                    const V power = exp2_at_most_one(fma(V::load(x + j), unit, shift));
                    sum.add(j, power);
                    return power;
                };
                if (scores.drops()) {
                    Number factors[key_tile];
                    scores.dropout(head, first_row + row + r, base, factors);
                    store_over_keys(span, block.weights + r * key_tile,
                                    [&](std::int64_t j)
                                        __attribute__((always_inline)) { return weight(j) * V::load(factors + j); });
                } else {
                    store_over_keys(span, block.weights + r * key_tile, weight);
                }
                sum.total().store(block.sum + (row + r) * V::lanes);
            }
            const auto add_values = [&](auto v) {
                multiply<To::rescale>(group, block.width / V::lanes, steps_of<Storage>(span),
                                      Left<T>{block.weights, key_tile, 1}, v,
                                      Out<Number>{block.out + row * block.width, block.width}, block.rescale);
            };
            if (v_in_place) {
                add_values(KeyRows<Storage>{head.key_of(p.v, base), p.v.strides[1]});
            } else {
                add_values(Right<T>{block.v, block.width});
            }
        }
    }

    for (std::int64_t row = 0; row < rows; ++row) {
        const Number sum = reduce_add(V::load(block.sum + row * V::lanes));
        const V inverse = V::broadcast(sum == 0 ? Number(0) : Number(1) / sum);
        if (row + rows_ahead < rows) prefetch_row<Use::write>(head.row_of(a.out, first_row + row + rows_ahead), D);
        Storage* out = head.row_of(a.out, first_row + row);
        for (std::int64_t i = 0; i < D; i += V::lanes) {
            // + 0, so that a sum of nothing but underflows is +0, with hidden keys between them or without.
            fma(V::load(block.out + row * block.width + i), inverse, V::zero())
                .store(out + i, std::min(V::lanes, D - i));
        }
        *head.template row_of_transposed<Number>(a.lse, first_row + row) =
            sum == 0 ? -infinity<Number> : static_cast<Number>(block.maximum[row] * ln_2 + std::log(double{sum}));
    }
}

template <class Storage>
void weights_rows(const attention::Weights& a, const Scores<Storage>& scores, const Head<Storage>& head,
                  std::int64_t first_row, std::int64_t rows) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    const Problem& p = a.problem;
    const std::int64_t D = p.D;
    Divider count;
    Block<Storage>(count, rows, D);
    const Scratch scratch(count.used());
    Divider memory(scratch.data());
    const Block<Storage> block(memory, rows, D);

    for (std::int64_t row = 0; row < rows; ++row) {
        if (row + rows_ahead < rows) prefetch_row(head.row_of(p.q, first_row + row + rows_ahead), D);
        block.load_query(head.row_of(p.q, first_row + row), row, D);
        block.keys[row] = head.keys(first_row + row);
        Storage* out = head.template row_of_transposed<Storage>(a.weights, first_row + row);
        std::fill_n(out, p.S, Storage{});
    }
    const Span all = unite(block.keys, rows);
    const std::int64_t origin = head.sequence.keys.begin;
    const std::int64_t first_tile = all.empty() ? 0 : (all.begin - origin) / key_tile;
    for (std::int64_t base = origin + first_tile * key_tile; base < all.end; base += key_tile) {
        pack_keys_transposed(head, p.k, base, in_tile(all, base), block.k);
        for (std::int64_t row = 0; row < rows; row += rows_at_once) {
            const std::int64_t group = std::min<std::int64_t>(rows_at_once, rows - row);
            const Span span = whole_vectors<V>(in_tile(unite(block.keys + row, group), base));
            if (span.empty()) continue;
            block.multiply_keys(row, group, span);
            for (std::int64_t r = 0; r < group; ++r) {
                Number* x = block.scores + r * key_tile;
                scores.finish(head, first_row + row + r, block.keys[row + r], base, span, x, nullptr);
                const Lse<Number> lse(*head.template row_of_transposed<Number>(a.lse, first_row + row + r));
                Storage* out = head.template row_of_transposed<Storage>(a.weights, first_row + row + r) + base;
                for (std::int64_t j = span.begin; j < span.end; j += V::lanes) {
                    lse.weight(V::load(x + j), scores.unit())
                        .store(out + j, std::clamp<std::int64_t>(p.S - base - j, 0, V::lanes));
                }
            }
        }
    }
}

// Runs f(head, first row, rows) on blocks of rows, the longest of each head first.
template <class Storage, class F>
void each_block(const Problem& p, F f) {
    if (p.T == 0) return;  // there may be more sequences than memory could hold
    struct Piece {
        std::int64_t sequence, first_row, rows;
    };
    std::vector<Piece> pieces;
    const std::int64_t heads = p.H / p.G;
    const std::int64_t row_tiles = ceil_div(p.T * heads, row_tile) * p.B * p.G;
    const std::int64_t block =
        std::clamp(row_tiles / (threads() * tasks_per_thread) * row_tile, row_tile, largest_block);
    for (std::int64_t s = 0; s < p.keys.sequences(); ++s) {
        const std::int64_t rows = sequence_of(p, s).queries.size() * heads;
        for (std::int64_t first = (rows - 1) / block * block; rows > 0 && first >= 0; first -= block) {
            pieces.push_back({s, first, std::min(block, rows - first)});
        }
    }
    parallel_for(static_cast<std::int64_t>(pieces.size()) * p.G, [&](std::int64_t task) {
        const Piece& piece = pieces[static_cast<std::size_t>(task / p.G)];
        f(Head<Storage>::all_of(p, piece.sequence, task % p.G), piece.first_row, piece.rows);
    });
}

template <class Storage>
void forward_typed(const attention::Forward& a) {
    const Scores<Storage> scores(a.problem);
    each_block<Storage>(a.problem, [&](const Head<Storage>& head, std::int64_t first_row, std::int64_t rows) {
        forward_rows<Storage>(a, scores, head, first_row, rows);
    });
}

template <class Storage>
void weights_typed(const attention::Weights& a) {
    const Scores<Storage> scores(a.problem);
    each_block<Storage>(a.problem, [&](const Head<Storage>& head, std::int64_t first_row, std::int64_t rows) {
        weights_rows<Storage>(a, scores, head, first_row, rows);
    });
}

}  // namespace

template <>
void attention_forward<this_isa>(const attention::Forward& a) {
    with_storage(a.problem.q.dtype, [&](auto storage) { forward_typed<decltype(storage)>(a); });
}

template <>
void attention_weights<this_isa>(const attention::Weights& a) {
    with_storage(a.problem.q.dtype, [&](auto storage) { weights_typed<decltype(storage)>(a); });
}

}  // namespace pygpt::cpu
