// Which keys a query may see: causal alignment, window, lengths and packed documents, worked out once for every
// backend.
//
// Each query has a place on the key axis (the diagonal), and sees the keys from `before` places before it to `after`
// places after it, as far as its sequence has them. A sequence is a row of the batch or, with packed documents, a
// document; key tiles, dropout positions and bits count from its first key. Everything here also runs on the device,
// where the tensors behind the pointers are not checked: values out of range are clamped.
#ifndef PYGPT_OPS_ATTENTION_KEYS_H
#define PYGPT_OPS_ATTENTION_KEYS_H

#include <cstdint>

namespace pygpt::attention {

// begin <= i < end; empty if begin >= end
struct Span {
    std::int64_t begin, end;
    constexpr bool empty() const { return begin >= end; }
    constexpr std::int64_t size() const { return empty() ? 0 : end - begin; }
};

// What may attend to what at most: a row of the batch, or a document of the only row.
struct Sequence {
    std::int64_t batch;  // the row of the tensors
    Span queries, keys;
    std::int64_t diagonal;  // the place of query i on the key axis is i + diagonal
};

struct KeyRange {
    static constexpr std::int64_t unlimited = std::int64_t{1} << 40;

    std::int64_t batch, q_time, k_time;
    std::int64_t before, after;       // how many keys on each side of its place a query sees, or unlimited
    std::int64_t diagonal;            // of every row, where query_start does not say it
    const std::int64_t* query_start;  // (B,) the diagonal of each row, or null
    const std::int64_t* key_lengths;  // (B,) or null
    const std::int64_t* cu_seqlens;   // (documents + 1,) or null
    std::int64_t documents;

    constexpr std::int64_t sequences() const { return cu_seqlens ? documents : batch; }

    constexpr Sequence sequence(std::int64_t index) const {
        if (cu_seqlens) {
            const Span document{clamp(cu_seqlens[index], 0, k_time), clamp(cu_seqlens[index + 1], 0, k_time)};
            return {0, document, document, diagonal};
        }
        const std::int64_t length = key_lengths ? clamp(key_lengths[index], 0, k_time) : k_time;
        const std::int64_t start = query_start ? clamp(query_start[index], 0, unlimited) : diagonal;
        return {index, {0, q_time}, {0, length}, start};
    }

    // The keys that a query of the sequence may see, before any mask.
    constexpr Span keys(const Sequence& sequence, std::int64_t query) const {
        const std::int64_t place = query + sequence.diagonal;
        return {larger(place - before, sequence.keys.begin), smaller(place + after + 1, sequence.keys.end)};
    }

    // The queries of the sequence that may see any of the keys, before any mask.
    constexpr Span queries(const Sequence& sequence, Span keys) const {
        const Span some{larger(keys.begin, sequence.keys.begin), smaller(keys.end, sequence.keys.end)};
        if (some.empty()) return {sequence.queries.begin, sequence.queries.begin};
        return {larger(some.begin - after - sequence.diagonal, sequence.queries.begin),
                smaller(some.end + before - sequence.diagonal, sequence.queries.end)};
    }

    // The position that dropout's random numbers are drawn for: the query's place, from its sequence's first key.
    constexpr std::int64_t position(const Sequence& sequence, std::int64_t query) const {
        return query + sequence.diagonal - sequence.keys.begin;
    }

  private:
    static constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
    static constexpr std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
    static constexpr std::int64_t clamp(std::int64_t value, std::int64_t low, std::int64_t high) {
        return smaller(larger(value, low), high);
    }
};

}  // namespace pygpt::attention

#endif
