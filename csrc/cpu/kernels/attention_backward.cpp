// Attention backward: the gradients of q, k, v, and that of the bias. Contract: ops/attention.h.
//
// The weights are computed again from the scores and lse, tile by tile. With o = grad_out, row by row:
//
//     p = 2^(scores - lse);  d = dropout / (1 - dropout) factors
//     delta = o · out - grad_lse;  s = p · (d · (o · vᵀ) - delta)      the gradient of the scores, = that of the bias
//     grad_v += (d · p)ᵀ · o;  grad_k += scale · sᵀ · q;  grad_q += scale · s · k        (s times the softcap's slope)
//
// A task is one kv head of one sequence and owns its part of all three gradients. It walks over the key tiles, and for
// each over its rows, in order: grad_k and grad_v of the tile stay in the cache and are summed over the rows, grad_q of
// all rows is summed over the key tiles. The bias may be shared by rows, heads and queries, so its gradient has
// tasks of its own, cut by what its elements share, which compute the scores' gradients once more.
//
// Floor: 10 · T · S · D operations a head (half with causal).
#include "cpu/kernels/attention_tiles.h"

namespace pygpt::cpu {
namespace {

using attention::Gradients;

// What the gradient needs of a number of rows.
template <class Storage>
struct GradientRows {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;

    using T = factor_t<Storage>;  // of which there are half as many if they are pairs
    static constexpr bool pairs = !std::is_same_v<T, Number>;

    std::int64_t count;
    std::int64_t width;                   // D in whole vectors
    std::int64_t stride;                  // of the left factors' rows
    T *q, *grad_out;                      // left factors of products over D: (count, stride)
    T *q_over_rows, *grad_out_over_rows;  // right factors of products over rows: (count, width)
    Lse<Number>* lse;                     // (count,)
    Number* delta;                        // (count,)
    Span* keys;                           // (count,)
    T *k, *v;                             // (D, key_tile)
    Number* weights;                      // (row_tile, key_tile)
    Number* grad_scores;                  // (row_tile, key_tile)
    Number* slope;                        // (key_tile,)
    T* room;                              // (row_tile, key_tile), for one of them as factors

    GradientRows(Divider& memory, std::int64_t rows, std::int64_t D)
        : count(rows),
          width(ceil_div(D, V::lanes) * V::lanes),
          stride(pairs ? steps_of<Storage>(D) : width),
          q(memory.take<T>(rows * stride)),
          grad_out(memory.take<T>(rows * stride)),
          q_over_rows(pairs ? memory.take<T>(steps_of<Storage>(rows) * width) : q),
          grad_out_over_rows(pairs ? memory.take<T>(steps_of<Storage>(rows) * width) : grad_out),
          lse(memory.take<Lse<Number>>(rows)),
          delta(memory.take<Number>(rows)),
          keys(memory.take<Span>(rows)),
          k(memory.take<T>(steps_of<Storage>(D) * key_tile)),
          v(memory.take<T>(steps_of<Storage>(D) * key_tile)),
          weights(memory.take<Number>(row_tile * key_tile)),
          grad_scores(memory.take<Number>(row_tile * key_tile)),
          slope(memory.take<Number>(key_tile)),
          room(memory.take<T>(row_tile * key_tile)) {}

    void load(const Gradients& a, const Head<Storage>& head, std::int64_t first_row) const {
        const std::int64_t D = a.problem.D;
        T* const out = room;  // a place that is free
        const auto pack = [&](const TensorView& tensor, std::int64_t row, T* to) {
            const Storage* from = head.row_of(tensor, first_row + row);
            if constexpr (pairs) {
                pack_factors(from, D, to);
            } else {
                pack_row(from, D, to, stride);
            }
        };
        for (std::int64_t row = 0; row < count; ++row) {
            const std::int64_t from = first_row + row;
            if (row + rows_ahead < count) {
                for (const TensorView* tensor : {&a.problem.q, &a.grad_out, &a.out}) {
                    prefetch_row(head.row_of(*tensor, from + rows_ahead), D);
                }
            }
            pack(a.problem.q, row, q + row * stride);
            pack(a.grad_out, row, grad_out + row * stride);
            pack(a.out, row, out);
            // in the order of o · vᵀ: equal if out is one v
            delta[row] = dot(grad_out + row * stride, out, steps_of<Storage>(D));
            if (a.grad_lse) delta[row] -= *head.template row_of_transposed<Number>(*a.grad_lse, from);
            lse[row] = Lse<Number>(*head.template row_of_transposed<Number>(a.lse, from));
            keys[row] = head.keys(from);
        }
        if constexpr (pairs) {
            const auto pair = [&](const TensorView& tensor, T* to) {
                pair_rows(count, [&](std::int64_t row) { return head.row_of(tensor, first_row + row); }, D, to, width);
            };
            pair(a.problem.q, q_over_rows);
            pair(a.grad_out, grad_out_over_rows);
        }
    }

    void load_keys(const Head<Storage>& head, std::int64_t base, Span seen) const {
        pack_keys_transposed(head, head.p.k, base, seen, k);
        pack_keys_transposed(head, head.p.v, base, seen, v);
    }

    // For a group of rows, at most group_rows, and the keys base + span: the weights (after dropout) and the gradients
    // of the scores, or with `uncapped` those of q·k, but for scale. They go to the group's place in the row tile.
    void group(const Scores<Storage>& scores, const Head<Storage>& head, std::int64_t first_row, std::int64_t row,
               std::int64_t rows, std::int64_t base, Span span, bool uncapped) const {
        const Span steps{0, steps_of<Storage>(head.p.D)};
        const std::int64_t place = row % row_tile * key_tile;
        multiply<To::set, T, Number>(rows, span.size() / V::lanes, steps, {q + row * stride, stride, 1},
                                     {k + span.begin, key_tile}, {weights + place + span.begin, key_tile});
        multiply<To::set, T, Number>(rows, span.size() / V::lanes, steps, {grad_out + row * stride, stride, 1},
                                     {v + span.begin, key_tile}, {grad_scores + place + span.begin, key_tile});
        const bool capped = uncapped && head.p.softcap;
        for (std::int64_t r = 0; r < rows; ++r) {
            Number* x = weights + place + r * key_tile;
            Number* g = grad_scores + place + r * key_tile;
            scores.finish(head, first_row + row + r, keys[row + r], base, span, x, slope);
            Number factors[key_tile];
            if (scores.drops()) scores.dropout(head, first_row + row + r, base, factors);
            const V delta_v = V::broadcast(delta[row + r]);
            for (std::int64_t j = span.begin; j < span.end; j += V::lanes) {
                const V weight = lse[row + r].weight(V::load(x + j), scores.unit());
                V grad = V::load(g + j);
                V kept = weight;
                if (scores.drops()) {
                    grad = grad * V::load(factors + j);
                    kept = kept * V::load(factors + j);
                }
                grad = weight * (grad - delta_v);
                if (capped) grad = grad * V::load(slope + j);
                kept.store(x + j);
                where_seen(weight, grad).store(g + j);
            }
        }
    }
};

// to = from · factor, + 0 as in the forward
template <class Number, class Storage>
void write_row(const Number* from, Number factor, std::int64_t width, Storage* to) {
    using V = Vec<Number>;
    for (std::int64_t i = 0; i < width; i += V::lanes) {
        fma(V::load(from + i), V::broadcast(factor), V::zero()).store(to + i, std::min(V::lanes, width - i));
    }
}

template <class Storage>
void backward_head(const attention::Backward& a, const Scores<Storage>& scores, const Head<Storage>& head) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    const Problem& p = a.problem;
    const std::int64_t rows = head.rows();
    const std::int64_t width = ceil_div(p.D, V::lanes) * V::lanes;
    using T = factor_t<Storage>;
    struct Sums {
        Number* grad_q;           // (rows, width)
        T* k;                     // (key_tile, width), the right factor of a product over keys
        Number *grad_k, *grad_v;  // (key_tile, width)
        Sums(Divider& memory, std::int64_t rows, std::int64_t width)
            : grad_q(memory.take<Number>(rows * width)),
              k(memory.take<T>(steps_of<Storage>(key_tile) * width)),
              grad_k(memory.take<Number>(key_tile * width)),
              grad_v(memory.take<Number>(key_tile * width)) {}
    };
    Divider count;
    GradientRows<Storage>(count, rows, p.D);
    Sums(count, rows, width);
    const Scratch scratch(count.used());
    Divider memory(scratch.data());
    const GradientRows<Storage> tile(memory, rows, p.D);
    const Sums sums(memory, rows, width);

    tile.load(a, head, 0);
    std::fill_n(sums.grad_q, rows * width, Number(0));
    const Span all = unite(tile.keys, rows);
    const Number scale = static_cast<Number>(p.scale);
    const std::int64_t last_key = p.keys.cu_seqlens ? head.sequence.keys.end : p.S;  // also of keys past the length
    for (std::int64_t base = head.sequence.keys.begin; base < last_key; base += key_tile) {
        const Span seen = in_tile(all, base);
        std::fill_n(sums.grad_k, key_tile * width, Number(0));
        std::fill_n(sums.grad_v, key_tile * width, Number(0));
        if (!seen.empty()) {
            tile.load_keys(head, base, seen);
            pack_key_factors(head, p.k, base, seen, sums.k, width);
        }
        for (std::int64_t row = 0; row < rows && !seen.empty(); row += row_tile) {
            prefetch_keys(head, base + key_tile, all.end, row / row_tile, ceil_div(rows, row_tile));
            const std::int64_t end = std::min(row + row_tile, rows);
            const Span tile_span = whole_vectors<V>(in_tile(unite(tile.keys + row, end - row), base));
            if (tile_span.empty()) continue;
            Span steps{row, row};  // the rows that see any of these keys
            for (std::int64_t r = row; r < end; r += group_rows) {
                const std::int64_t group = std::min<std::int64_t>(group_rows, end - r);
                const Span span = whole_vectors<V>(in_tile(unite(tile.keys + r, group), base));
                if (span.empty()) continue;
                for (std::int64_t zero = steps.empty() ? r : steps.end; zero < r + group; ++zero) {
                    const std::int64_t place = zero % row_tile * key_tile;
                    std::fill_n(tile.weights + place + tile_span.begin, tile_span.size(), Number(0));
                    std::fill_n(tile.grad_scores + place + tile_span.begin, tile_span.size(), Number(0));
                }
                steps = unite(steps, {r, r + group});
                tile.group(scores, head, 0, r, group, base, span, true);
                multiply<To::add, T, Number>(
                    group, width / V::lanes, steps_of<Storage>(span),
                    {over_keys<Storage>(tile.grad_scores + (r - row) * key_tile, group, span, tile.room), key_tile, 1},
                    {sums.k, width}, {sums.grad_q + r * width, width});
            }
            steps = {steps.begin - row, steps.end - row};
            const auto add_over_rows = [&](const Number* left, const T* right, Number* out) {
                multiply<To::add, T, Number>(
                    tile_span.size(), width / V::lanes, steps_of<Storage>(steps),
                    {over_rows<Storage>(left, steps, tile_span, tile.room) + tile_span.begin, 1, key_tile},
                    {right + steps_of<Storage>(row) * width, width}, {out + tile_span.begin * width, width});
            };
            add_over_rows(tile.weights, tile.grad_out_over_rows, sums.grad_v);
            add_over_rows(tile.grad_scores, tile.q_over_rows, sums.grad_k);
        }
        for (std::int64_t key = 0; key < std::min(key_tile, last_key - base); ++key) {
            write_row(sums.grad_k + key * width, scale, p.D, head.key_of(a.grad_k, base + key));
            write_row(sums.grad_v + key * width, Number(1), p.D, head.key_of(a.grad_v, base + key));
        }
    }
    for (std::int64_t row = 0; row < rows; ++row) {
        write_row(sums.grad_q + row * width, scale, p.D, head.row_of(a.grad_q, row));
    }
}

template <class Storage>
void backward_typed(const attention::Backward& a) {
    const Problem& p = a.problem;
    const Scores<Storage> scores(p);
    parallel_for(p.keys.sequences() * p.G, [&](std::int64_t task) {
        backward_head<Storage>(a, scores, Head<Storage>::all_of(p, task / p.G, task % p.G));
    });
}

// Adds the gradients of one query head's scores, of the queries in `queries`, to sums (queries or 1, keys or 1).
template <class Storage>
void add_bias_gradients(const attention::BiasBackward& a, const Scores<Storage>& scores, const Head<Storage>& head,
                        Span queries, compute_t<Storage>* sums) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    const Problem& p = a.problem;
    const Span own = intersect(queries, head.sequence.queries);
    const bool per_query = a.grad_bias.strides[2] != 0;
    const bool per_key = a.grad_bias.strides[3] != 0;
    Divider count;
    GradientRows<Storage>(count, row_tile, p.D);
    const Scratch scratch(count.used());
    for (std::int64_t query = own.begin; query < own.end; query += row_tile) {
        const std::int64_t rows = std::min(row_tile, own.end - query);
        const std::int64_t first_row = query - head.sequence.queries.begin;
        Divider memory(scratch.data());
        const GradientRows<Storage> tile(memory, rows, p.D);
        tile.load(a, head, first_row);
        const Span all = unite(tile.keys, rows);
        const std::int64_t origin = head.sequence.keys.begin;
        for (std::int64_t base = origin; base < all.end; base += key_tile) {
            const Span seen = in_tile(all, base);
            if (seen.empty()) continue;
            tile.load_keys(head, base, seen);
            for (std::int64_t row = 0; row < rows; row += group_rows) {
                const std::int64_t group = std::min<std::int64_t>(group_rows, rows - row);
                const Span span = whole_vectors<V>(in_tile(unite(tile.keys + row, group), base));
                if (span.empty()) continue;
                tile.group(scores, head, first_row, row, group, base, span, false);
                for (std::int64_t r = row; r < row + group; ++r) {
                    const Number* from = tile.grad_scores + r * key_tile;
                    Number* to = sums + (per_query ? query + r - queries.begin : 0) * (per_key ? p.S : 1);
                    V sum = V::zero();
                    for (std::int64_t j = span.begin; j < span.end; j += V::lanes) {
                        const V grad = V::load(from + j);
                        if (per_key) {
                            const std::int64_t lanes = std::clamp<std::int64_t>(p.S - base - j, 0, V::lanes);
                            (V::load(to + base + j, lanes) + grad).store(to + base + j, lanes);
                        }
                        sum = sum + grad;
                    }
                    if (!per_key) *to += reduce_add(sum);
                }
            }
        }
    }
}

// A task owns the elements of one (batch, head) of the bias, and row_tile queries or, if queries share it, all.
template <class Storage>
void bias_backward_typed(const attention::BiasBackward& a) {
    using Number = compute_t<Storage>;
    const Problem& p = a.problem;
    const TensorView& bias = a.grad_bias;
    const Scores<Storage> scores(p);
    const auto all_or_one = [&](int dimension) { return bias.strides[dimension] ? bias.shape[dimension] : 1; };
    const std::int64_t batches = all_or_one(0), heads = all_or_one(1), keys = all_or_one(3);
    const std::int64_t block = bias.strides[2] ? row_tile : p.T;
    const std::int64_t blocks = bias.strides[2] ? ceil_div(p.T, row_tile) : 1;
    parallel_for(batches * heads * blocks, [&](std::int64_t task) {
        const std::int64_t batch = task / blocks / heads;
        const std::int64_t own_head = task / blocks % heads;
        const Span queries{task % blocks * block, std::min(task % blocks * block + block, p.T)};
        const std::int64_t rows = bias.strides[2] ? queries.size() : 1;
        const Scratch scratch(static_cast<std::size_t>(rows * keys) * sizeof(Number));
        auto* sums = static_cast<Number*>(scratch.data());
        std::fill_n(sums, rows * keys, Number(0));
        for (std::int64_t s = 0; s < p.keys.sequences(); ++s) {
            if (batches > 1 && sequence_of(p, s).batch != batch) continue;
            for (std::int64_t h = heads > 1 ? own_head : 0; h < (heads > 1 ? own_head + 1 : p.H); ++h) {
                add_bias_gradients<Storage>(a, scores, Head<Storage>(p, s, h, 1), queries, sums);
            }
        }
        const std::int64_t place =
            batch * bias.strides[0] + own_head * bias.strides[1] + queries.begin * bias.strides[2];
        if (bias.dtype == DType::float32) {
            write_row(sums, Number(1), rows * keys, static_cast<float*>(bias.data) + place);
        } else {
            write_row(sums, Number(1), rows * keys, static_cast<Storage*>(bias.data) + place);
        }
    });
}

}  // namespace

template <>
void attention_backward<this_isa>(const attention::Backward& a) {
    with_storage(a.problem.q.dtype, [&](auto storage) { backward_typed<decltype(storage)>(a); });
}

template <>
void attention_bias_backward<this_isa>(const attention::BiasBackward& a) {
    with_storage(a.problem.q.dtype, [&](auto storage) { bias_backward_typed<decltype(storage)>(a); });
}

}  // namespace pygpt::cpu
