#include "session/cache.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "cpu/thread_pool.h"
#include "cuda/kernels.h"
#include "ops/check.h"

namespace pygpt::session {
namespace {

constexpr std::int64_t tokens_per_task = 32;

std::int64_t* integers(const TensorView& tensor) {
    return static_cast<std::int64_t*>(tensor.data);
}

void check_integers(const check::Named& argument, const Device& device, std::initializer_list<std::int64_t> shape) {
    check::dtype_is(argument, DType::int64, "as places and tokens are");
    check::on_device(argument, device, "where the cache is");
    check::shape_is(argument, shape, "one for each row");
    check::contiguous(argument);
}

void check_alive(const TensorView& alive, const Device& device, std::int64_t rows) {
    const check::Named argument{"alive", alive};
    check::dtype_is(argument, DType::boolean, "whether a row goes on");
    check::on_device(argument, device, "where the cache is");
    check::shape_is(argument, {rows}, "one for each row");
    check::contiguous(argument);
}

// Whether a launcher of kernels is to be called, for tensors on this device.
template <class Arguments>
bool on_cuda(const Device& device, void (*launcher)(const Arguments&)) {
    if (device.type == DeviceType::cuda && !launcher) throw ValueError("this build of pygpt has no CUDA kernels");
    return device.type == DeviceType::cuda;
}

// New keys or values, and the cache that they go to.
void check_pair(const check::Named& fresh, const check::Named& cache) {
    check::dimensions_are(fresh, 4, "(batch, time, kv_heads, head_dim)");
    check::dimensions_are(cache, 4, "(batch, capacity + 1, kv_heads, head_dim)");
    check::dtype_is(cache, fresh.tensor.dtype, "that of what it stores");
    check::on_device(cache, fresh.tensor.device, "where new keys and values are");
    const std::int64_t* shape = fresh.tensor.shape;
    check::shape_is(cache, {shape[0], cache.tensor.shape[1], shape[2], shape[3]}, "as many heads as what it stores");
    for (const check::Named* each : {&fresh, &cache}) {
        if (shape[3] > 1 && each->tensor.strides[3] != 1) {
            throw ValueError(text(each->name, " must have a last dimension of stride 1"));
        }
    }
}

// Keys or values of one head at a place of a row.
char* at(const TensorView& tensor, std::int64_t row, std::int64_t place, std::int64_t head) {
    const std::int64_t element = row * tensor.strides[0] + place * tensor.strides[1] + head * tensor.strides[2];
    return static_cast<char*>(tensor.data) + element * bytes_of(tensor.dtype);
}

void copy_token(const TensorView& fresh, std::int64_t row, std::int64_t time, const TensorView& cache,
                std::int64_t slot) {
    const std::int64_t places = cache.shape[1];
    for (std::int64_t head = 0; head < fresh.shape[2]; ++head) {
        std::memcpy(at(cache, slot / places, slot % places, head), at(fresh, row, time, head),
                    static_cast<std::size_t>(fresh.shape[3] * bytes_of(fresh.dtype)));
    }
}

}  // namespace

void find_places(Places arguments) {
    const Places& a = arguments;
    check::dimensions_are({"tokens", a.tokens}, 2, "(rows, most tokens)");
    const std::int64_t rows = a.tokens.shape[0], most = a.tokens.shape[1];
    const Device device = a.tokens.device;
    check_integers({"tokens", a.tokens}, device, {rows, most});
    check_integers({"lengths", a.lengths}, device, {rows});
    check_alive(a.alive, device, rows);
    check_integers({"ids", a.ids}, device, {rows, 1});
    check_integers({"positions", a.positions}, device, {rows, 1});
    check_integers({"slots", a.slots}, device, {rows});
    check_integers({"query_start", a.query_start}, device, {rows});
    check_integers({"key_lengths", a.key_lengths}, device, {rows});
    if (on_cuda(device, cuda::find_places)) return cuda::find_places(a);
    const std::int64_t limit = std::min(most, a.capacity);
    for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t length = integers(a.lengths)[row];
        const bool alive = static_cast<const std::uint8_t*>(a.alive.data)[row] != 0;
        if (alive && (length < 1 || length > limit)) {
            throw ValueError(text("lengths[", row, "] is ", length, ", but must be at least 1 and at most ", limit));
        }
        const std::int64_t place = alive ? length - 1 : 0;
        integers(a.ids)[row] = alive ? integers(a.tokens)[row * most + place] : 0;
        integers(a.positions)[row] = place;
        integers(a.slots)[row] = row * (a.capacity + 1) + (alive ? place : a.capacity);
        integers(a.query_start)[row] = place;
        integers(a.key_lengths)[row] = alive ? length : 0;
    }
}

void append(Append arguments) {
    const Append& a = arguments;
    check::dimensions_are({"tokens", a.tokens}, 2, "(rows, most tokens)");
    check::dimensions_are({"ends", a.ends}, 1, "(tokens,)");
    const std::int64_t rows = a.tokens.shape[0], most = a.tokens.shape[1];
    const Device device{DeviceType::cpu, 0};
    check_integers({"tokens", a.tokens}, device, {rows, most});
    check_integers({"lengths", a.lengths}, device, {rows});
    check_integers({"chosen", a.chosen}, device, {rows});
    check_integers({"ends", a.ends}, device, {a.ends.shape[0]});
    check_alive(a.alive, device, rows);
    auto* const alive = static_cast<std::uint8_t*>(a.alive.data);
    for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t length = integers(a.lengths)[row];
        if (alive[row] && (length < 0 || length >= most)) {
            throw ValueError(text("lengths[", row, "] is ", length, ", but must be at least 0 and less than ", most));
        }
    }
    const std::int64_t* const ends = integers(a.ends);
    for (std::int64_t row = 0; row < rows; ++row) {
        if (!alive[row]) continue;
        const std::int64_t token = integers(a.chosen)[row];
        integers(a.tokens)[row * most + integers(a.lengths)[row]++] = token;
        alive[row] = std::find(ends, ends + a.ends.shape[0], token) == ends + a.ends.shape[0];
    }
}

void copy(Copy arguments) {
    const Copy& a = arguments;
    check::like({"out", a.out}, {"x", a.x});
    check::on_device({"x", a.x}, {DeviceType::cpu, 0}, "where a step copies");
    if (elements(a.x) == 0) return;
    const int inner = a.x.dimensions - 1;  // runs along the last dimension, one by one
    const std::int64_t size = bytes_of(a.x.dtype), length = a.x.dimensions == 0 ? 1 : a.x.shape[inner];
    const std::int64_t stride = a.x.dimensions == 0 ? 1 : a.x.strides[inner];
    auto* out = static_cast<char*>(a.out.data);
    for (std::int64_t run = 0; run < elements(a.x) / length; ++run) {
        std::int64_t first = 0, rest = run;
        for (int i = inner - 1; i >= 0; --i) {
            first += rest % a.x.shape[i] * a.x.strides[i];
            rest /= a.x.shape[i];
        }
        const char* const from = static_cast<const char*>(a.x.data) + first * size;
        if (stride == 1) {
            std::memcpy(out, from, static_cast<std::size_t>(length * size));
        } else {
            for (std::int64_t i = 0; i < length; ++i) {
                std::memcpy(out + i * size, from + i * stride * size, static_cast<std::size_t>(size));
            }
        }
        out += length * size;
    }
}

void store(Store arguments) {
    const Store& a = arguments;
    check_pair({"k", a.k}, {"k_cache", a.k_cache});
    check_pair({"v", a.v}, {"v_cache", a.v_cache});
    check::shape_is({"v", a.v}, {a.k.shape[0], a.k.shape[1], a.k.shape[2], a.k.shape[3]}, "that of k");
    check::shape_is({"v_cache", a.v_cache}, {a.k.shape[0], a.k_cache.shape[1], a.k.shape[2], a.k.shape[3]},
                    "that of k_cache");
    const std::int64_t time = a.k.shape[1], tokens = a.k.shape[0] * time;
    check_integers({"slots", a.slots}, a.k.device, {tokens});
    check::indices_in({"slots", a.slots}, a.k.shape[0] * a.k_cache.shape[1], std::nullopt, "the cache's slots");
    if (on_cuda(a.k.device, cuda::store_keys_values)) return cuda::store_keys_values(a);
    cpu::parallel_for((tokens + tokens_per_task - 1) / tokens_per_task, [&](std::int64_t task) {
        for (std::int64_t i = task * tokens_per_task; i < std::min(tokens, (task + 1) * tokens_per_task); ++i) {
            copy_token(a.k, i / time, i % time, a.k_cache, integers(a.slots)[i]);
            copy_token(a.v, i / time, i % time, a.v_cache, integers(a.slots)[i]);
        }
    });
}

}  // namespace pygpt::session
