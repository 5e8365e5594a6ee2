// Embedding, forward and backward. ids (N,), table (V, C) -> out (N, C)
//
// Forward: a warp copies a row; the floor is reading and writing N · C elements. An id out of range gives NaN.
//
// Backward: a block owns one row of grad_table (up to `columns` of it, a pack a thread) and writes it once: zeros, a
// copy, or the sum of the rows of grad_out with its id, in order of position, in groups of rows so that the error does
// not grow with their number. Nothing is read back; the floor is writing V · C and reading N · C elements.
//
// How an owner finds its positions: they are counted by id, the counts are summed into the beginning of each id's part
// of `order`, and each position is put into its id's part. Atomics on integers count and place: counts are the same in
// any order, and what is placed in any order is put in order by the owner: by rank where there are at most as many as
// threads, else by going through ids once more. Cost beside the floor: ids are read three times and order is written
// and read, 40 bytes a position; and an id with k > threads positions costs a pass over N ids, at most N / threads of
// them do.
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/pointer.h"
#include "cuda/tiles/pack.cuh"
#include "cuda/tiles/reduce.cuh"

namespace pygpt::cuda {
namespace {

using Count = unsigned long long;  // what atomics add to

constexpr int forward_rows = 8;  // of a block, a warp each

template <class Storage, bool aligned>
__global__ void embedding_forward_kernel(const std::int64_t* ids, const Storage* table, Storage* out, std::int64_t rows,
                                         std::int64_t vocabulary, std::int64_t width) {
    constexpr int vector = aligned ? pack_elements<Storage> : 1;
    const std::int64_t row = std::int64_t{blockIdx.x} * forward_rows + threadIdx.y;
    if (row >= rows) return;
    const std::int64_t id = ids[row];
    const bool exists = id >= 0 && id < vocabulary;
    Pack<Storage, vector> values;
#pragma unroll
    for (int j = 0; j < vector; ++j) values.value[j] = from_float<Storage>(nanf(""));
    for (std::int64_t i = threadIdx.x * vector; i < width; i += warp_lanes * vector) {
        if constexpr (aligned) {
            if (exists) values = Pack<Storage, vector>::from(table + id * width + i);
            values.write(out + row * width + i);
        } else {
            out[row * width + i] = exists ? table[id * width + i] : values.value[0];
        }
    }
}

constexpr int threads = 128;
constexpr int positions_at_once = 8 * threads;  // of one id, held in shared memory
constexpr int rows_per_sum = 64;

__global__ void embedding_backward_zero_kernel(Count* counts, std::int64_t vocabulary) {
    const std::int64_t id = std::int64_t{blockIdx.x} * threads + threadIdx.x;
    if (id < vocabulary) counts[id] = 0;
}

__global__ void embedding_backward_count_kernel(const std::int64_t* ids, Count* counts, std::int64_t rows,
                                                std::int64_t vocabulary) {
    const std::int64_t row = std::int64_t{blockIdx.x} * threads + threadIdx.x;
    if (row >= rows) return;
    const std::int64_t id = ids[row];
    if (id >= 0 && id < vocabulary) atomicAdd(counts + id, Count{1});
}

constexpr int scan_threads = 1024;
constexpr int counts_per_thread = 4;

// One block: start[v] = Σ_{u < v} counts[u], for v up to V; next = start.
__global__ void __launch_bounds__(scan_threads)
    embedding_backward_start_kernel(const Count* counts, Count* start, Count* next, std::int64_t vocabulary) {
    __shared__ Count warp_sums[max_warps];
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes, lane = static_cast<int>(threadIdx.x) % warp_lanes;
    Count before = 0;  // counts of all ids before this tile
    for (std::int64_t first = 0; first < vocabulary; first += scan_threads * counts_per_thread) {
        const std::int64_t mine = first + std::int64_t{threadIdx.x} * counts_per_thread;
        Count count[counts_per_thread], sum = 0;
        for (int i = 0; i < counts_per_thread; ++i) {
            count[i] = mine + i < vocabulary ? counts[mine + i] : 0;
            sum += count[i];
        }
        Count up_to = sum;  // of the warp's lanes up to this one
        for (int distance = 1; distance < warp_lanes; distance *= 2) {
            const Count other = __shfl_up_sync(all_lanes, up_to, static_cast<unsigned>(distance));
            if (lane >= distance) up_to += other;
        }
        __syncthreads();  // the last tile's sums have been read
        if (lane == warp_lanes - 1) warp_sums[warp] = up_to;
        __syncthreads();
        Count place = before + up_to - sum;
        for (int w = 0; w < max_warps; ++w) {
            if (w < warp) place += warp_sums[w];
            before += warp_sums[w];
        }
        for (int i = 0; i < counts_per_thread && mine + i < vocabulary; ++i) {
            start[mine + i] = next[mine + i] = place;
            place += count[i];
        }
    }
    if (threadIdx.x == 0) start[vocabulary] = before;
}

__global__ void embedding_backward_place_kernel(const std::int64_t* ids, Count* next, std::int64_t* order,
                                                std::int64_t rows, std::int64_t vocabulary) {
    const std::int64_t row = std::int64_t{blockIdx.x} * threads + threadIdx.x;
    if (row >= rows) return;
    const std::int64_t id = ids[row];
    if (id >= 0 && id < vocabulary) order[atomicAdd(next + id, Count{1})] = row;
}

template <class Storage, bool aligned>
__global__ void __launch_bounds__(threads)
    embedding_backward_kernel(const Storage* grad_out, const std::int64_t* ids, const Count* start,
                              const std::int64_t* order, Storage* grad_table, std::int64_t rows, std::int64_t width) {
    constexpr int vector = pack_elements<Storage>;
    __shared__ std::int64_t positions[positions_at_once];
    __shared__ std::int64_t unordered[threads];
    __shared__ int found_by_warp[threads / warp_lanes];
    const std::int64_t id = blockIdx.x;
    const std::int64_t column = (std::int64_t{blockIdx.y} * threads + threadIdx.x) * vector;
    const auto first = static_cast<std::int64_t>(start[id]);
    const std::int64_t count = static_cast<std::int64_t>(start[id + 1]) - first;

    Floats<vector> total = {}, sum = {};
    std::int64_t added = 0;
    // Adds the rows at the first `filled` of `positions`.
    const auto add = [&](int filled) {
        if (column >= width) return;
#pragma unroll 4
        for (int p = 0; p < filled; ++p, ++added) {
            const auto row = load<aligned, vector>(grad_out + positions[p] * width + column, width - column);
            const bool begins = added % rows_per_sum == 0;
#pragma unroll
            for (int j = 0; j < vector; ++j) {
                if (begins) total.value[j] += sum.value[j];
                sum.value[j] = begins ? row.value[j] : sum.value[j] + row.value[j];
            }
        }
    };

    if (count <= threads) {
        const std::int64_t mine = threadIdx.x < count ? order[first + threadIdx.x] : 0;
        unordered[threadIdx.x] = mine;
        __syncthreads();
        if (threadIdx.x < count) {
            int rank = 0;
            for (int other = 0; other < count; ++other) rank += unordered[other] < mine;
            positions[rank] = mine;
        }
        __syncthreads();
        add(static_cast<int>(count));
    } else {
        const int warp = static_cast<int>(threadIdx.x) / warp_lanes, lane = static_cast<int>(threadIdx.x) % warp_lanes;
        for (std::int64_t next = 0; next < rows;) {
            int filled = 0;
            for (; next < rows && filled + threads <= positions_at_once; next += threads) {
                const std::int64_t row = next + threadIdx.x;
                const bool found = row < rows && ids[row] == id;
                const unsigned lanes = __ballot_sync(all_lanes, found);
                __syncthreads();  // the last numbers, and before them the last positions, have been read
                if (lane == 0) found_by_warp[warp] = __popc(lanes);
                __syncthreads();
                int place = filled + __popc(lanes & ((1u << lane) - 1));
                for (int w = 0; w < threads / warp_lanes; ++w) {
                    if (w < warp) place += found_by_warp[w];
                    filled += found_by_warp[w];
                }
                if (found) positions[place] = row;
            }
            __syncthreads();
            add(filled);
        }
    }
    if (column >= width) return;
#pragma unroll
    for (int j = 0; j < vector; ++j) total.value[j] += sum.value[j];
    store<aligned>(grad_table + id * width + column, total, width - column);
}

unsigned blocks_of(std::int64_t count) {
    return static_cast<unsigned>(divide_up(count, threads));
}

}  // namespace

void embedding_forward(const embedding::Forward& a) {
    with_storage(a.table.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        const auto start = [&](auto kernel) {
            launch(kernel,
                   {.grid = static_cast<unsigned>(divide_up(a.rows, forward_rows)),
                    .block = dim3(warp_lanes, forward_rows)},
                   pointer<std::int64_t>(a.ids), pointer<Storage>(a.table), pointer<Storage>(a.out), a.rows,
                   a.table.shape[0], a.width);
        };
        if (in_packs(pack_elements<Storage>, a.width, {a.table.data, a.out.data})) {
            start(embedding_forward_kernel<Storage, true>);
        } else {
            start(embedding_forward_kernel<Storage, false>);
        }
    });
}

void embedding_backward(const embedding::Backward& a) {
    auto* counts = scratch<Count>(static_cast<std::size_t>(3 * a.vocabulary + 1));
    auto* order = scratch<std::int64_t>(static_cast<std::size_t>(a.rows));
    Count* const next = counts + a.vocabulary;
    Count* const start = next + a.vocabulary;
    const auto* ids = pointer<std::int64_t>(a.ids);
    launch(embedding_backward_zero_kernel, {.grid = blocks_of(a.vocabulary), .block = threads}, counts, a.vocabulary);
    launch(embedding_backward_count_kernel, {.grid = blocks_of(a.rows), .block = threads}, ids, counts, a.rows,
           a.vocabulary);
    launch(embedding_backward_start_kernel, {.grid = 1, .block = scan_threads}, counts, start, next, a.vocabulary);
    launch(embedding_backward_place_kernel, {.grid = blocks_of(a.rows), .block = threads}, ids, next, order, a.rows,
           a.vocabulary);
    with_storage(a.grad_out.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        constexpr int columns = threads * pack_elements<Storage>;
        const auto run = [&](auto kernel) {
            launch(
                kernel,
                {.grid = dim3(static_cast<unsigned>(a.vocabulary), static_cast<unsigned>(divide_up(a.width, columns))),
                 .block = threads},
                pointer<Storage>(a.grad_out), ids, start, order, pointer<Storage>(a.grad_table), a.rows, a.width);
        };
        if (in_packs(pack_elements<Storage>, a.width, {a.grad_out.data, a.grad_table.data})) {
            run(embedding_backward_kernel<Storage, true>);
        } else {
            run(embedding_backward_kernel<Storage, false>);
        }
    });
}

}  // namespace pygpt::cuda
