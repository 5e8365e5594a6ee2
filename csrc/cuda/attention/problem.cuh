// The problem as attention's kernels see it: tensors by pointer and strides, and which part of it a block works on.
//
// The rows of a kv head in a sequence are its queries, and of each query the heads that read it: row = (query - first
// query) · group + head in the group. Row tiles count from the sequence's first row, key tiles from its first key, so
// that what a tile holds does not depend on what else is in the batch. Inside a block keys are counted from the
// sequence's first key, in 32 bits.
#ifndef PYGPT_CUDA_ATTENTION_PROBLEM_CUH
#define PYGPT_CUDA_ATTENTION_PROBLEM_CUH

#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>

#include "core/philox.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/number.cuh"

namespace pygpt::cuda {
namespace {

using attention::KeyRange;
using attention::Problem;
using attention::Sequence;
using attention::Span;

constexpr float infinity = __builtin_huge_valf();
constexpr float ln_2 = 0.693147180559945309f;

// A tensor of (batch, time, heads, D), the last dimension of stride 1.
template <class Element>
struct Vectors {
    Element* data;
    std::int64_t batch, time, head;  // strides
    bool in_chunks;                  // every vector is a number of aligned 16-byte chunks

    explicit Vectors(const TensorView& tensor)
        : data(static_cast<Element*>(tensor.data)),
          batch(tensor.strides[0]),
          time(tensor.strides[1]),
          head(tensor.strides[2]) {
        constexpr std::int64_t chunk = 16 / sizeof(Element);
        in_chunks = reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && batch % chunk == 0 && time % chunk == 0 &&
                    head % chunk == 0 && tensor.shape[3] % chunk == 0;
    }
    __device__ Element* at(std::int64_t in_batch, std::int64_t in_time, std::int64_t in_head) const {
        return data + in_batch * batch + in_time * time + in_head * head;
    }
};

// A tensor of (batch, heads, q_time, k_time), stride 0 where it broadcasts; null where there is none.
struct Added {
    void* data;
    bool is_float32;
    std::int64_t batch, head, query, key;  // strides

    explicit Added(const std::optional<TensorView>& tensor)
        : data(tensor ? tensor->data : nullptr),
          is_float32(tensor && tensor->dtype == DType::float32),
          batch(tensor ? tensor->strides[0] : 0),
          head(tensor ? tensor->strides[1] : 0),
          query(tensor ? tensor->strides[2] : 0),
          key(tensor ? tensor->strides[3] : 0) {}
    __device__ std::int64_t at(std::int64_t in_batch, std::int64_t in_head, std::int64_t in_query,
                               std::int64_t in_key) const {
        return in_batch * batch + in_head * head + in_query * query + in_key * key;
    }
};

// What stands between a product q·k and a weight. Scores are in units of log 2.
struct ScoreOptions {
    float scale_log2;
    bool capped;
    float scale_cap, cap_log2;  // scale / softcap, softcap in units of log 2
    Added bias, mask;
    bool plain;  // none of the three above

    bool drops;
    std::uint32_t drop_below;
    float kept;  // 1 / (1 - dropout); 0 if all is dropped
    const std::int64_t* seeds;
    bool one_seed;

    explicit ScoreOptions(const Problem& p);
};

template <class Storage>
struct DeviceProblem {
    Vectors<const Storage> q, k, v;
    KeyRange keys;
    ScoreOptions scores;
    std::int64_t T, S, H;
    int D, G, group;  // group: query heads of a kv head
    float scale;

    explicit DeviceProblem(const Problem& p)
        : q(p.q),
          k(p.k),
          v(p.v),
          keys(p.keys),
          scores(p),
          T(p.T),
          S(p.S),
          H(p.H),
          D(static_cast<int>(p.D)),
          G(static_cast<int>(p.G)),
          group(static_cast<int>(p.H / p.G)),
          scale(static_cast<float>(p.scale)) {}
};

// The queries, and the query heads of one kv head or a single head, that a block walks over.
struct Rows {
    Sequence sequence;
    int first_head, heads;

    __device__ std::int64_t count() const { return sequence.queries.size() * heads; }
};

// A tile of rows: of its row r, counted from the tile's first, the query and the head.
struct RowTile {
    std::int64_t query;  // of row 0
    int skipped;         // heads of that query before row 0
    int first_head, heads;
    int count;  // rows, at most the tile's size

    __device__ RowTile(const Rows& rows, std::int64_t first, int size)
        : query(rows.sequence.queries.begin + first / rows.heads),
          skipped(static_cast<int>(first % rows.heads)),
          first_head(rows.first_head),
          heads(rows.heads) {
        const std::int64_t left = rows.count() - first;
        count = left < size ? static_cast<int>(left) : size;
    }
    __device__ std::int64_t query_of(int row) const { return query + (heads == 1 ? row : (skipped + row) / heads); }
    __device__ int head_of(int row) const { return first_head + (heads == 1 ? 0 : (skipped + row) % heads); }
};

// A span of keys, counted from the sequence's first.
struct Keys {
    int begin, end;
    __device__ bool empty() const { return begin >= end; }
};

__device__ inline Keys keys_of(const KeyRange& range, const Sequence& sequence, std::int64_t query) {
    const Span span = range.keys(sequence, query);
    if (span.empty()) {  // still in order of the queries, so that spans of a tile's ends bound those between
        const std::int64_t length = sequence.keys.size();
        const std::int64_t at = span.begin - sequence.keys.begin;
        const int place = static_cast<int>(at < 0 ? 0 : at < length ? at : length);
        return {place, place};
    }
    return {static_cast<int>(span.begin - sequence.keys.begin), static_cast<int>(span.end - sequence.keys.begin)};
}

// The keys that any of a tile's rows sees, and those that all see.
struct TileKeys {
    Keys any, all;
    __device__ TileKeys(const KeyRange& range, const Sequence& sequence, const RowTile& rows) {
        const Keys first = keys_of(range, sequence, rows.query_of(0));
        const Keys last = keys_of(range, sequence, rows.query_of(rows.count - 1));
        any = first.begin < last.end ? Keys{first.begin, last.end} : Keys{0, 0};
        all = {last.begin, first.end};
    }
};

// Where the vectors of a tile's rows and keys begin.
template <class Element>
struct RowVector {
    static constexpr bool equal_distances = false;
    const Vectors<Element>& tensor;
    std::int64_t batch;
    const RowTile& rows;
    __device__ Element* operator()(int row) const { return tensor.at(batch, rows.query_of(row), rows.head_of(row)); }
};
template <class Element>
struct KeyVector {
    static constexpr bool equal_distances = true;
    Element* first;
    std::int64_t stride;
    __device__ Element* operator()(int key) const { return first + key * stride; }
};

// What of a row the scores need; in shared memory.
struct RowFacts {
    int begin, end;          // the keys it sees
    std::uint32_t position;  // for dropout
    int head;
    std::int64_t bias, mask;  // where those of the sequence's first key lie
    float lse_high, lse_low;  // the log-sum-exp in units of log 2
    float delta;
};
static_assert(sizeof(RowFacts) == 48);

template <class Storage>
__device__ RowFacts facts_of(const DeviceProblem<Storage>& p, const Sequence& sequence, std::int64_t query, int head) {
    const Keys keys = keys_of(p.keys, sequence, query);
    return {keys.begin,
            keys.end,
            static_cast<std::uint32_t>(p.keys.position(sequence, query)),
            head,
            p.scores.bias.at(sequence.batch, head, query, sequence.keys.begin),
            p.scores.mask.at(sequence.batch, head, query, sequence.keys.begin),
            0,
            0,
            0};
}

// ---- which part a block works on ----

// A block's number, from 0, as (sequence, kv head, tile), or none: the number of tiles of packed documents is known on
// the device alone, and the grid has as many blocks as there may be tiles. Late tiles, which under a causal diagonal
// have the most keys, come first.
struct Work {
    bool none;
    std::int64_t sequence, tile;
    int kv_head;
};

enum class Over { rows, keys };

template <Over over>
struct Tiling {
    KeyRange keys;
    int size;   // rows or keys in a tile
    int group;  // rows for each query
    int kv_heads;
    std::int64_t tiles;  // of a sequence; with documents of all together, at most

    Tiling(const Problem& p, int tile)
        : Tiling(p, tile, over == Over::rows ? static_cast<int>(p.H / p.G) : 1, static_cast<int>(p.G)) {}
    Tiling(const Problem& p, int tile, int rows_of_a_query, int heads)
        : keys(p.keys), size(tile), group(rows_of_a_query), kv_heads(heads) {
        tiles = divide_up((over == Over::rows ? p.T : p.S) * group, size) + (keys.cu_seqlens ? keys.documents : 0);
    }
    unsigned blocks() const {
        return static_cast<unsigned>((keys.cu_seqlens ? 1 : keys.sequences()) * kv_heads * tiles);
    }

    __device__ Work work(unsigned block) const { return at(block / tiles, tiles - 1 - block % tiles); }
    // The same of a sequence and kv head (of the kv head alone where there are documents), and the tile's number.
    __device__ Work at(std::int64_t outer, std::int64_t tile) const {
        const int kv_head = static_cast<int>(outer % kv_heads);
        if (!keys.cu_seqlens) return {false, outer / kv_heads, tile, kv_head};
        const int lane = threadIdx.x % 32;
        std::int64_t before = 0;  // tiles of the documents before
        for (std::int64_t first = 0; first < keys.documents; first += 32) {
            std::int64_t own = 0;
            if (first + lane < keys.documents) {
                own = divide_up(keys.sequence(first + lane).queries.size() * group, size);
            }
            std::int64_t end = own;  // of this lane's document
            for (int step = 1; step < 32; step *= 2) {
                const std::int64_t other = __shfl_up_sync(~0u, end, step);
                if (lane >= step) end += other;
            }
            const unsigned behind = __ballot_sync(~0u, tile < before + end);
            if (behind) {
                const int found = __ffs(static_cast<int>(behind)) - 1;
                const std::int64_t begin = before + __shfl_sync(~0u, end - own, found);
                return {false, first + found, tile - begin, kv_head};
            }
            before += __shfl_sync(~0u, end, 31);
        }
        return {true, 0, 0, kv_head};
    }
};

// The tile of rows that a block works on; not any where it has no rows.
struct BlockRows {
    std::int64_t in_sequence;  // which
    int kv_head;
    Sequence sequence;
    RowTile rows;

    template <class Storage>
    __device__ BlockRows(const DeviceProblem<Storage>& p, const Tiling<Over::rows>& tiling, unsigned block)
        : BlockRows(p, tiling, tiling.work(block)) {}
    __device__ bool any() const { return rows.count > 0; }

  private:
    template <class Storage>
    __device__ BlockRows(const DeviceProblem<Storage>& p, const Tiling<Over::rows>& tiling, const Work& work)
        : in_sequence(work.sequence),
          kv_head(work.kv_head),
          sequence(work.none ? Sequence{} : p.keys.sequence(work.sequence)),
          rows({sequence, work.kv_head * p.group, p.group}, work.tile * tiling.size, tiling.size) {}
};

// ---- host ----

inline ScoreOptions::ScoreOptions(const Problem& p)
    : scale_log2(static_cast<float>(p.scale * 1.442695040888963407)),
      capped(p.softcap.has_value()),
      scale_cap(capped ? static_cast<float>(p.scale / *p.softcap) : 0),
      cap_log2(capped ? static_cast<float>(*p.softcap * 1.442695040888963407) : 0),
      bias(p.bias),
      mask(p.mask),
      plain(!p.softcap && !p.bias && !p.mask),
      drops(p.dropout > 0),
      drop_below(philox::drop_below(p.dropout < 1 ? p.dropout : 0)),
      kept(p.dropout < 1 ? static_cast<float>(1 / (1 - p.dropout)) : 0),
      seeds(p.seed ? static_cast<const std::int64_t*>(p.seed->data) : nullptr),
      one_seed(p.seed && p.seed->dimensions == 0) {}

// Calls f with the smallest head size that holds D and that there are kernels for. The 16-bit ones of the hot kernels
// have more of them, so that less is padded.
template <int... sizes, class F>
void with_head_dim(std::int64_t D, std::integer_sequence<int, sizes...>, F&& f) {
    bool done = false;
    ((!done && D <= sizes ? (done = true, f(std::integral_constant<int, sizes>{})) : void()), ...);
}
using FewHeadDims = std::integer_sequence<int, 64, 128, 256>;
template <class Storage>
using HeadDims = std::conditional_t<sizeof(Storage) == 2, std::integer_sequence<int, 64, 96, 128, 256>, FewHeadDims>;

}  // namespace
}  // namespace pygpt::cuda

#endif
