// The key/value cache on the device (session/cache.h): where a step's tokens stand in it, and how their keys and values
// get there.
//
// Places: a thread works out those of a row. Store: a block copies the keys or the values of a token, both in one
// launch; the floor is reading and writing each once. Neither trusts values: a length is clamped, and what has a slot
// outside the cache is not stored.
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/pointer.h"
#include "cuda/tiles/pack.cuh"

namespace pygpt::cuda {
namespace {

constexpr int threads = 128;

struct Rows {
    const std::int64_t *tokens, *lengths;
    const bool* alive;
    std::int64_t *ids, *positions, *slots, *query_start, *key_lengths;
    std::int64_t rows, most, capacity;
};

__global__ void __launch_bounds__(threads) find_places_kernel(const Rows p) {
    const std::int64_t row = std::int64_t{blockIdx.x} * threads + threadIdx.x;
    if (row >= p.rows) return;
    const std::int64_t limit = p.most < p.capacity ? p.most : p.capacity;
    const std::int64_t given = p.lengths[row];
    const std::int64_t length = given < 1 ? 1 : given > limit ? limit : given;
    const bool alive = p.alive[row];
    const std::int64_t place = alive ? length - 1 : 0;
    p.ids[row] = alive ? p.tokens[row * p.most + place] : 0;
    p.positions[row] = place;
    p.slots[row] = row * (p.capacity + 1) + (alive ? place : p.capacity);
    p.query_start[row] = place;
    p.key_lengths[row] = alive ? length : 0;
}

// Keys or values, new and kept. Strides in elements; the last dimension has stride 1.
template <class Storage>
struct Copied {
    const Storage* fresh;
    Storage* cache;
    std::int64_t fresh_row, fresh_time, fresh_head, cache_row, cache_place, cache_head;
};

struct Sizes {
    std::int64_t time, places, slots;
    int heads, head_dim;
};

// A block moves a token's keys, or its values: blockIdx is (token, which of them).
template <class Storage, bool aligned>
__global__ void __launch_bounds__(threads)
    store_kernel(const __grid_constant__ Copied<Storage> keys, const __grid_constant__ Copied<Storage> values,
                 const std::int64_t* slots, const Sizes sizes) {
    constexpr int vector = aligned ? pack_elements<Storage> : 1;
    const Copied<Storage>& moved = blockIdx.y == 0 ? keys : values;
    const std::int64_t token = blockIdx.x, slot = slots[token];
    // Many tokens may go to the place that no query sees: none does.
    if (slot < 0 || slot >= sizes.slots || slot % sizes.places == sizes.places - 1) return;
    const Storage* fresh = moved.fresh + token / sizes.time * moved.fresh_row + token % sizes.time * moved.fresh_time;
    Storage* cache = moved.cache + slot / sizes.places * moved.cache_row + slot % sizes.places * moved.cache_place;
    const int packs = sizes.head_dim / vector;  // of a head
    for (int i = static_cast<int>(threadIdx.x); i < sizes.heads * packs; i += threads) {
        const Storage* from = fresh + i / packs * moved.fresh_head + i % packs * vector;
        Storage* to = cache + i / packs * moved.cache_head + i % packs * vector;
        if constexpr (aligned) {
            Pack<Storage, vector>::from(from).write(to);
        } else {
            *to = *from;
        }
    }
}

template <class Storage>
Copied<Storage> copied(const TensorView& fresh, const TensorView& cache) {
    return {
        .fresh = pointer<const Storage>(fresh),
        .cache = pointer<Storage>(cache),
        .fresh_row = fresh.strides[0],
        .fresh_time = fresh.strides[1],
        .fresh_head = fresh.strides[2],
        .cache_row = cache.strides[0],
        .cache_place = cache.strides[1],
        .cache_head = cache.strides[2],
    };
}

// Whether each head begins where a pack may, and is made of whole ones.
bool heads_in_packs(int count, const TensorView& tensor) {
    bool aligned = in_packs(count, tensor.shape[3], {tensor.data});
    for (int i = 0; i < 3; ++i) aligned &= tensor.shape[i] == 1 || tensor.strides[i] % count == 0;
    return aligned;
}

}  // namespace

void find_places(const session::Places& a) {
    const std::int64_t rows = a.tokens.shape[0];
    const Rows p{
        .tokens = pointer<const std::int64_t>(a.tokens),
        .lengths = pointer<const std::int64_t>(a.lengths),
        .alive = pointer<const bool>(a.alive),
        .ids = pointer<std::int64_t>(a.ids),
        .positions = pointer<std::int64_t>(a.positions),
        .slots = pointer<std::int64_t>(a.slots),
        .query_start = pointer<std::int64_t>(a.query_start),
        .key_lengths = pointer<std::int64_t>(a.key_lengths),
        .rows = rows,
        .most = a.tokens.shape[1],
        .capacity = a.capacity,
    };
    launch(find_places_kernel, {.grid = static_cast<unsigned>(divide_up(rows, threads)), .block = threads}, p);
}

void store_keys_values(const session::Store& a) {
    const Sizes sizes{
        .time = a.k.shape[1],
        .places = a.k_cache.shape[1],
        .slots = a.k_cache.shape[0] * a.k_cache.shape[1],
        .heads = static_cast<int>(a.k.shape[2]),
        .head_dim = static_cast<int>(a.k.shape[3]),
    };
    const auto tokens = static_cast<unsigned>(a.k.shape[0] * a.k.shape[1]);
    with_storage(a.k.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        const auto run = [&](auto kernel) {
            launch(kernel, {.grid = {tokens, 2}, .block = threads}, copied<Storage>(a.k, a.k_cache),
                   copied<Storage>(a.v, a.v_cache), pointer<const std::int64_t>(a.slots), sizes);
        };
        bool aligned = true;
        for (const TensorView* each : {&a.k, &a.v, &a.k_cache, &a.v_cache}) {
            aligned &= heads_in_packs(pack_elements<Storage>, *each);
        }
        if (aligned) {
            run(store_kernel<Storage, true>);
        } else {
            run(store_kernel<Storage, false>);
        }
    });
}

}  // namespace pygpt::cuda
