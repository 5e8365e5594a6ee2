// Dropout. x (B, W) -> out (B, W)
//
// The 64 elements whose decisions come together (core/philox.h) take four packs of one thread each: a thread works out
// as many Philox blocks as a pack has elements, and their four words decide four packs, 16 elements apart. The mask is
// never stored. The floor is reading and writing each element once; about 15 integer instructions an element stand
// beside it.
#include "core/philox.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/pointer.h"
#include "cuda/tiles/pack.cuh"

namespace pygpt::cuda {
namespace {

constexpr int threads = 256;
constexpr int blocks = 3;  // of a multiprocessor, at least
constexpr int words = 4;   // of a Philox block

template <class Storage, bool aligned>
__global__ void __launch_bounds__(threads, blocks)
    dropout_forward_kernel(const Storage* x, const std::int64_t* seed, Storage* out, std::int64_t rows,
                           std::int64_t width, std::uint32_t drop_below, bool drop_all, float scale) {
    constexpr int vector = pack_elements<Storage>;
    constexpr int owners = philox::blocks_per_group / vector;  // threads to a group of 64 elements
    const std::int64_t groups = (width + philox::elements_per_group - 1) / philox::elements_per_group;  // of a row
    const std::int64_t task = std::int64_t{blockIdx.x} * threads + threadIdx.x;
    const std::int64_t row = task / owners / groups;
    if (row >= rows) return;
    const std::int64_t group = task / owners - row * groups;
    const int first_block = static_cast<int>(task % owners) * vector;
    const std::uint64_t key = static_cast<std::uint64_t>(*seed) + static_cast<std::uint64_t>(row);

    const std::int64_t first = group * philox::elements_per_group + first_block;  // of the row
    Pack<Storage, vector> packs[words];                                           // on their way meanwhile
#pragma unroll
    for (int word = 0; word < words; ++word) {
        const std::int64_t i = first + word * philox::blocks_per_group;
        if (i >= width) continue;
        const Storage* own = x + row * width + i;
        if constexpr (aligned) {
            packs[word] = Pack<Storage, vector>::from(own);
        } else {
            packs[word] = Pack<Storage, vector>::of_first(width - i, own);
        }
    }
    unsigned dropped[words] = {};  // a bit for each element of a pack
#pragma unroll 2
    for (int i = 0; i < vector; ++i) {
        const auto block = static_cast<std::uint64_t>(group * philox::blocks_per_group + first_block + i);
        const philox::Words bits = philox::bits(
            key, {{philox::low(block), philox::high(block), 0, static_cast<std::uint32_t>(philox::Site::dropout)}});
#pragma unroll
        for (int word = 0; word < words; ++word) dropped[word] |= (bits.word[word] < drop_below ? 1u : 0u) << i;
    }
#pragma unroll
    for (int word = 0; word < words; ++word) {
        const std::int64_t i = first + word * philox::blocks_per_group;
        if (i >= width) break;
        Floats<vector> values = packs[word].floats();
#pragma unroll
        for (int j = 0; j < vector; ++j)
            values.value[j] = drop_all ? 0.0f : values.value[j] * (dropped[word] >> j & 1 ? 0.0f : scale);
        store<aligned>(out + row * width + i, values, width - i);
    }
}

}  // namespace

void dropout_forward(const dropout::Forward& a) {
    with_storage(a.x.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        constexpr std::int64_t owners = philox::blocks_per_group / pack_elements<Storage>;
        const std::int64_t tasks = a.rows * divide_up(a.width, philox::elements_per_group) * owners;
        const bool drop_all = a.p == 1;
        const auto start = [&](auto kernel) {
            launch(kernel, {.grid = static_cast<unsigned>(divide_up(tasks, threads)), .block = threads},
                   pointer<Storage>(a.x), pointer<std::int64_t>(a.seed), pointer<Storage>(a.out), a.rows, a.width,
                   drop_all ? 0 : philox::drop_below(a.p), drop_all,
                   drop_all ? 0.0f : static_cast<float>(1 / (1 - a.p)));
        };
        if (in_packs(pack_elements<Storage>, a.width, {a.x.data, a.out.data})) {
            start(dropout_forward_kernel<Storage, true>);
        } else {
            start(dropout_forward_kernel<Storage, false>);
        }
    });
}

}  // namespace pygpt::cuda
