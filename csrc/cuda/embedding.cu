// Embedding, forward and backward. ids (N,), table (V, C) -> out (N, C)
//
// Forward: a warp copies a row; the floor is reading and writing N · C elements. An id out of range gives NaN.
//
// Backward: a block owns one row of grad_table (128 packs of it, one a thread) and writes it once: zeros, a
// copy, or the sum of the rows of grad_out with its id, in order of position, in groups of 64 so that the error does
// not grow with their number. The floor is writing V · C and reading N · C elements.
//
// How an owner finds its positions: they are counted by id, the counts are summed into the beginning of each id's part
// of `order`, and each position is put into its id's part. Atomics on integers count and place: counts are the same in
// any order, and what is placed in any order the owner puts in order by rank. Cost beside the floor: ids are read
// twice, and order is written and read, 32 bytes a position.
//
// An id with more than 128 positions, as every text has some, would keep its block busy long after all others. Such ids
// are listed: a block goes through all ids for each of them and puts its positions in order, blocks sum the groups, and
// another adds the groups' sums up, in the same order as if one had done all. At most N / 128 ids are listed; for each
// of them ids are read again, and for each 64 of its positions a row is written and read in float32.
#include <algorithm>

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
constexpr int rows_per_sum = 64;

// An id with more positions than a block has threads.
struct Frequent {
    std::int64_t id, first, count;  // its positions in `order`
    Count first_sum;                // its groups' sums, one after the other
};
struct Totals {
    Count ids, sums;  // listed
};

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
constexpr int ids_per_scan = scan_threads * counts_per_thread;  // of a block

// sums[b] = the counts of the b-th `ids_per_scan` ids, by a block each.
__global__ void __launch_bounds__(scan_threads)
    embedding_backward_sum_kernel(const Count* counts, std::int64_t vocabulary, Count* sums, Totals* totals) {
    __shared__ Count warp_sums[max_warps];
    Count sum = 0;
#pragma unroll
    for (int i = 0; i < counts_per_thread; ++i) {
        const std::int64_t id = std::int64_t{blockIdx.x} * ids_per_scan + i * scan_threads + threadIdx.x;
        if (id < vocabulary) sum += counts[id];
    }
    sum = reduce_team(sum, warp_sums, Sum{});
    if (threadIdx.x > 0) return;
    sums[blockIdx.x] = sum;
    if (blockIdx.x == 0) *totals = {};
}

// start[v] = Σ_{u < v} counts[u], for v up to V; next = start; a block owns `ids_per_scan` ids, and adds up the sums of
// the blocks before it. Lists the frequent ids, in any order.
__global__ void __launch_bounds__(scan_threads, 1)
    embedding_backward_start_kernel(const Count* counts, const Count* sums, Count* start, Count* next,
                                    std::int64_t vocabulary, Frequent* frequent, Totals* totals) {
    __shared__ Count warp_sums[max_warps], shared[max_warps];
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes, lane = static_cast<int>(threadIdx.x) % warp_lanes;
    const std::int64_t mine = std::int64_t{blockIdx.x} * ids_per_scan + std::int64_t{threadIdx.x} * counts_per_thread;
    Count count[counts_per_thread], sum = 0;
#pragma unroll
    for (int i = 0; i < counts_per_thread; ++i) {
        count[i] = mine + i < vocabulary ? counts[mine + i] : 0;
        sum += count[i];
    }
    Count place = 0;
    for (unsigned block = threadIdx.x; block < blockIdx.x; block += scan_threads) place += sums[block];
    place = reduce_team(place, shared, Sum{});
    Count up_to = sum;  // of the warp's lanes up to this one
    for (int distance = 1; distance < warp_lanes; distance *= 2) {
        const Count other = __shfl_up_sync(all_lanes, up_to, static_cast<unsigned>(distance));
        if (lane >= distance) up_to += other;
    }
    if (lane == warp_lanes - 1) warp_sums[warp] = up_to;
    __syncthreads();
    place += up_to - sum;
    for (int w = 0; w < warp; ++w) place += warp_sums[w];
#pragma unroll
    for (int i = 0; i < counts_per_thread; ++i) {
        if (mine + i >= vocabulary) break;
        start[mine + i] = next[mine + i] = place;
        if (count[i] > threads) {
            const Count groups = (count[i] + rows_per_sum - 1) / rows_per_sum;
            frequent[atomicAdd(&totals->ids, Count{1})] = {mine + i, static_cast<std::int64_t>(place),
                                                           static_cast<std::int64_t>(count[i]),
                                                           atomicAdd(&totals->sums, groups)};
        }
        place += count[i];
        if (mine + i == vocabulary - 1) start[vocabulary] = place;
    }
}

__global__ void embedding_backward_place_kernel(const std::int64_t* ids, Count* next, std::int64_t* order,
                                                std::int64_t rows, std::int64_t vocabulary) {
    const std::int64_t row = std::int64_t{blockIdx.x} * threads + threadIdx.x;
    if (row >= rows) return;
    const std::int64_t id = ids[row];
    if (id >= 0 && id < vocabulary) order[atomicAdd(next + id, Count{1})] = row;
}

constexpr int ids_per_thread = 4;

// A block of scan_threads for each frequent id: its positions in order, and of each of its sums whose it is.
__global__ void __launch_bounds__(scan_threads)
    embedding_backward_order_kernel(const std::int64_t* ids, std::int64_t rows, const Frequent* frequent,
                                    const Totals* totals, std::int64_t* order, unsigned* owners) {
    __shared__ int found_by_warp[max_warps];
    if (blockIdx.x >= totals->ids) return;
    const Frequent own = frequent[blockIdx.x];
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes, lane = static_cast<int>(threadIdx.x) % warp_lanes;
    for (std::int64_t i = threadIdx.x; i * rows_per_sum < own.count; i += scan_threads) {
        owners[own.first_sum + static_cast<Count>(i)] = blockIdx.x;
    }
    std::int64_t place = own.first;
    for (std::int64_t first = 0; first < rows; first += scan_threads * ids_per_thread) {
        const std::int64_t mine = first + std::int64_t{threadIdx.x} * ids_per_thread;
        unsigned found = 0;
#pragma unroll
        for (int i = 0; i < ids_per_thread; ++i) {
            found |= (mine + i < rows && ids[mine + i] == own.id ? 1u : 0u) << i;
        }
        int up_to = __popc(found);  // of the warp's lanes up to this one
        for (int distance = 1; distance < warp_lanes; distance *= 2) {
            const int other = __shfl_up_sync(all_lanes, up_to, static_cast<unsigned>(distance));
            if (lane >= distance) up_to += other;
        }
        __syncthreads();  // the last numbers have been read
        if (lane == warp_lanes - 1) found_by_warp[warp] = up_to;
        __syncthreads();
        std::int64_t next = place + up_to - __popc(found);
        for (int w = 0; w < max_warps; ++w) {
            if (w < warp) next += found_by_warp[w];
            place += found_by_warp[w];
        }
        for (int i = 0; i < ids_per_thread; ++i) {
            if (found >> i & 1) order[next++] = mine + i;
        }
    }
}

// This thread's columns of the rows of grad_out at `count` positions, added up in order.
template <class Storage, bool aligned, int vector = pack_elements<Storage>>
__device__ Floats<vector> sum_at(const Storage* grad_out, const std::int64_t* positions, int count, std::int64_t width,
                                 std::int64_t column) {
    Floats<vector> sum = {};
#pragma unroll 4
    for (int p = 0; p < count; ++p) {
        const auto row = load<aligned, vector>(grad_out + positions[p] * width + column, width - column);
#pragma unroll
        for (int j = 0; j < vector; ++j) sum.value[j] = p == 0 ? row.value[j] : sum.value[j] + row.value[j];
    }
    return sum;
}

template <int vector>
__device__ void add(Floats<vector>& total, const Floats<vector>& sum) {
#pragma unroll
    for (int j = 0; j < vector; ++j) total.value[j] += sum.value[j];
}

template <class Storage>
__device__ std::int64_t own_column() {
    return (std::int64_t{blockIdx.y} * threads + threadIdx.x) * pack_elements<Storage>;
}

template <class Storage, bool aligned>
__global__ void __launch_bounds__(threads)
    embedding_backward_kernel(const Storage* grad_out, const Count* start, const std::int64_t* order,
                              Storage* grad_table, std::int64_t width) {
    __shared__ std::int64_t positions[threads], unordered[threads];
    const std::int64_t id = blockIdx.x;
    const std::int64_t column = own_column<Storage>();
    const auto first = static_cast<std::int64_t>(start[id]);
    const std::int64_t count = static_cast<std::int64_t>(start[id + 1]) - first;
    if (count > threads) return;  // frequent

    const std::int64_t mine = threadIdx.x < count ? order[first + threadIdx.x] : 0;
    unordered[threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.x < count) {
        int rank = 0;
        for (int other = 0; other < count; ++other) rank += unordered[other] < mine;
        positions[rank] = mine;
    }
    __syncthreads();
    if (column >= width) return;
    Floats<pack_elements<Storage>> total = {};
    for (int begin = 0; begin < count; begin += rows_per_sum) {
        const int left = static_cast<int>(count) - begin;
        add(total, sum_at<Storage, aligned>(grad_out, positions + begin, left < rows_per_sum ? left : rows_per_sum,
                                            width, column));
    }
    store<aligned>(grad_table + id * width + column, total, width - column);
}

// sums (listed, width)
template <class Storage, bool aligned>
__global__ void __launch_bounds__(threads)
    embedding_backward_frequent_kernel(const Storage* grad_out, const std::int64_t* order, const Frequent* frequent,
                                       const Totals* totals, const unsigned* owners, float* sums, std::int64_t width) {
    const std::int64_t column = own_column<Storage>();
    if (blockIdx.x >= totals->sums || column >= width) return;
    const Frequent& own = frequent[owners[blockIdx.x]];
    const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x - own.first_sum) * rows_per_sum;
    const std::int64_t left = own.count - begin;
    const auto sum =
        sum_at<Storage, aligned>(grad_out, order + own.first + begin,
                                 static_cast<int>(left < rows_per_sum ? left : rows_per_sum), width, column);
    store<aligned>(sums + blockIdx.x * width + column, sum, width - column);
}

template <class Storage, bool aligned>
__global__ void __launch_bounds__(threads)
    embedding_backward_total_kernel(const Frequent* frequent, const Totals* totals, const float* sums,
                                    Storage* grad_table, std::int64_t width) {
    constexpr int vector = pack_elements<Storage>;
    const std::int64_t column = own_column<Storage>();
    if (blockIdx.x >= totals->ids || column >= width) return;
    const Frequent& own = frequent[blockIdx.x];
    const float* from = sums + static_cast<std::int64_t>(own.first_sum) * width + column;
    Floats<vector> total = {};
    for (std::int64_t begin = 0; begin < own.count; begin += rows_per_sum, from += width) {
        add(total, load<aligned, vector>(from, width - column));
    }
    store<aligned>(grad_table + own.id * width + column, total, width - column);
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
    // As many as there may be.
    const std::int64_t most_ids = a.rows / (threads + 1);
    const std::int64_t most_sums = most_ids == 0 ? 0 : divide_up(a.rows, rows_per_sum) + most_ids;
    auto* const frequent = scratch<Frequent>(static_cast<std::size_t>(most_ids));
    auto* const owners = scratch<unsigned>(static_cast<std::size_t>(most_sums));
    auto* const sums = scratch<float>(static_cast<std::size_t>(most_sums * a.width));
    auto* const totals = scratch<Totals>(1);
    launch(embedding_backward_zero_kernel, {.grid = blocks_of(a.vocabulary), .block = threads}, counts, a.vocabulary);
    launch(embedding_backward_count_kernel, {.grid = blocks_of(a.rows), .block = threads}, ids, counts, a.rows,
           a.vocabulary);
    const Launch scan{.grid = static_cast<unsigned>(std::max<std::int64_t>(1, divide_up(a.vocabulary, ids_per_scan))),
                      .block = scan_threads};
    auto* const scan_sums = scratch<Count>(scan.grid.x);
    launch(embedding_backward_sum_kernel, scan, counts, a.vocabulary, scan_sums, totals);
    launch(embedding_backward_start_kernel, scan, counts, scan_sums, start, next, a.vocabulary, frequent, totals);
    launch(embedding_backward_place_kernel, {.grid = blocks_of(a.rows), .block = threads}, ids, next, order, a.rows,
           a.vocabulary);
    launch(embedding_backward_order_kernel, {.grid = static_cast<unsigned>(most_ids), .block = scan_threads}, ids,
           a.rows, frequent, totals, order, owners);
    with_storage(a.grad_out.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        const std::int64_t columns = divide_up(a.width, threads * pack_elements<Storage>);
        const auto shape = [&](std::int64_t blocks) {
            return Launch{.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(columns)),
                          .block = threads};
        };
        const auto* const grad_out = pointer<Storage>(a.grad_out);
        auto* const grad_table = pointer<Storage>(a.grad_table);
        const auto run = [&](auto aligned) {
            launch(embedding_backward_kernel<Storage, aligned()>, shape(a.vocabulary), grad_out, start, order,
                   grad_table, a.width);
            launch(embedding_backward_frequent_kernel<Storage, aligned()>, shape(most_sums), grad_out, order, frequent,
                   totals, owners, sums, a.width);
            launch(embedding_backward_total_kernel<Storage, aligned()>, shape(most_ids), frequent, totals, sums,
                   grad_table, a.width);
        };
        if (in_packs(pack_elements<Storage>, a.width, {grad_out, grad_table})) {
            run(std::true_type{});
        } else {
            run(std::false_type{});
        }
    });
}

}  // namespace pygpt::cuda
