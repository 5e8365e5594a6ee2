// Embedding, forward and backward. ids (N,), table (V, C) -> out (N, C)
//
// Forward: each row is copied; tasks are groups of ids. The floor is reading and writing N · C elements.
//
// Backward: the positions are put in order of their ids (a counting sort, which keeps the order of equal ids), so that
// the rows of grad_out that meet in one row of grad_table stand together. Tasks are ranges of the vocabulary: each row
// of grad_table has one owner, who writes it once: zeros, a copy, or a sum in order of position. No two owners meet,
// and nothing is read back. The floor is writing V · C and reading N · C elements.
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/kernels/rows.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t ids_per_task = 64;
constexpr std::int64_t vocabulary_per_task = 128;
constexpr std::int64_t largest_cached_bytes = std::int64_t{16} << 20;  // of grad_table: more is gone when it is read

std::int64_t tasks_of(std::int64_t count, std::int64_t per_task) {
    return (count + per_task - 1) / per_task;
}

// The positions of ids in order of id: those of id v are order[start[v]] .. order[start[v + 1] - 1], ascending.
void sort_positions(const std::int64_t* ids, std::int64_t rows, std::int64_t vocabulary, std::int64_t* start,
                    std::int64_t* order) {
    std::fill(start, start + vocabulary + 2, 0);
    std::int64_t* next = start + 1;  // next[v] is where v's next position goes; at the end it is start[v + 1]
    for (std::int64_t row = 0; row < rows; ++row) ++start[ids[row] + 2];
    for (std::int64_t v = 2; v <= vocabulary; ++v) start[v] += start[v - 1];
    for (std::int64_t row = 0; row < rows; ++row) order[next[ids[row]]++] = row;
}

// Copies a row, and before that begins to fetch the next: rows lie anywhere in a table that is larger than the cache.
void copy_row(const char* from, const char* next, std::int64_t bytes, char* to) {
    for (std::int64_t i = 0; i < bytes; i += 64) {
        __builtin_prefetch(next + i);
        write_ahead(to + i);
    }
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

template <class Storage>
void write_row(const Storage* grad_out, const std::int64_t* positions, std::int64_t count, std::int64_t width,
               bool cached, Storage* out) {
    using V = Vec<compute_t<Storage>>;
    const std::size_t bytes = static_cast<std::size_t>(width) * sizeof(Storage);
    if (count == 0 && !cached) {
        stream_zeros(out, bytes);
    } else if (count == 0) {
        std::memset(static_cast<void*>(out), 0, bytes);
    } else if (count == 1) {
        std::memcpy(static_cast<void*>(out), grad_out + positions[0] * width, bytes);
    } else {
        each_vector<V>(width, [&](std::int64_t i, std::int64_t lanes) {
            sum_of_rows<V>(count, [&](std::int64_t r) {
                return V::load(grad_out + positions[r] * width + i, lanes);
            }).store(out + i, lanes);
        });
    }
}

}  // namespace

template <>
void embedding_forward<this_isa>(const embedding::Forward& a) {
    const auto* ids = static_cast<const std::int64_t*>(a.ids.data);
    const auto* table = static_cast<const char*>(a.table.data);
    auto* out = static_cast<char*>(a.out.data);
    const std::int64_t bytes = a.width * bytes_of(a.table.dtype);
    if (bytes == 0) return;
    parallel_for(tasks_of(a.rows, ids_per_task), [&](std::int64_t task) {
        const std::int64_t first = task * ids_per_task;
        const std::int64_t last = std::min(first + ids_per_task, a.rows);
        for (std::int64_t row = first; row < last; ++row) {
            copy_row(table + ids[row] * bytes, table + ids[std::min(row + 1, last - 1)] * bytes, bytes,
                     out + row * bytes);
        }
    });
}

template <>
void embedding_backward<this_isa>(const embedding::Backward& a) {
    const Scratch scratch(static_cast<std::size_t>(a.vocabulary + 2 + a.rows) * sizeof(std::int64_t));
    auto* start = static_cast<std::int64_t*>(scratch.data());
    std::int64_t* order = start + a.vocabulary + 2;
    sort_positions(static_cast<const std::int64_t*>(a.ids.data), a.rows, a.vocabulary, start, order);
    if (a.width == 0) return;
    const bool cached = a.vocabulary * a.width * bytes_of(a.grad_table.dtype) <= largest_cached_bytes;
    with_storage(a.grad_out.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        const auto* grad_out = static_cast<const Storage*>(a.grad_out.data);
        parallel_for(tasks_of(a.vocabulary, vocabulary_per_task), [&](std::int64_t task) {
            const std::int64_t first = task * vocabulary_per_task;
            for (std::int64_t v = first; v < std::min(first + vocabulary_per_task, a.vocabulary); ++v) {
                write_row(grad_out, order + start[v], start[v + 1] - start[v], a.width, cached,
                          row_of<Storage>(a.grad_table, v, a.width));
            }
            if (!cached) end_stream();
        });
    });
}

}  // namespace pygpt::cpu
