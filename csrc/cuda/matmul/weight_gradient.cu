// Weight gradients as products whose sum over a batch is cut into parts (product.h).
//
// There are as many parts as give a large device enough blocks where the output has few tiles, each long enough to be
// worth its output's traffic. Their lengths follow from M, N and K, so an element's sum has one order everywhere.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/matmul/product.h"

namespace pygpt::cuda {
namespace {

// An output tile of an architecture's product, and how many blocks run at one time on a large device.
struct Blocks {
    std::int64_t tile_m, tile_n, wanted;
};
template <int architecture>
constexpr Blocks blocks_of = {128, 128, 256};
template <>
constexpr Blocks blocks_of<90> = {128, 256, 132};

constexpr std::int64_t least_part_k = 512;

// The length of each part but the last.
template <int architecture>
std::int64_t part_k(const WeightGradient& w) {
    constexpr Blocks blocks = blocks_of<architecture>;
    const std::int64_t tiles = divide_up(w.M, blocks.tile_m) * divide_up(w.N, blocks.tile_n);
    const std::int64_t most = std::min(blocks.wanted / std::max<std::int64_t>(1, tiles), w.K / least_part_k);
    return most <= 1 ? w.K : divide_up(divide_up(w.K, most), least_part_k) * least_part_k;
}

}  // namespace

template <int architecture>
std::int64_t part_floats(const WeightGradient& w) {
    const std::int64_t k = part_k<architecture>(w);
    return k == w.K ? 0 : divide_up(w.K, k) * w.M * w.N;
}

template <int architecture>
void weight_gradient(const WeightGradient& w) {
    Product p{.dtype = w.dtype,
              .form = Form::across_across,
              .a = w.a,
              .b = w.b,
              .M = w.M,
              .N = w.N,
              .K = w.K,
              .part_k = part_k<architecture>(w),
              .k_limit = w.k_limit,
              .epilogue = {.out = w.out, .pitch = w.N}};
    if (p.part_k == w.K) {
        p.part_k = 0;
        if (w.add) p.epilogue.residual = w.out;
        product<architecture>(p);
        return;
    }
    const auto floats = static_cast<std::size_t>(part_floats<architecture>(w));
    float* const sums = w.parts ? w.parts : scratch<float>(floats);
    p.epilogue.out = {sums, true};  // (parts, M, N)
    product<architecture>(p);
    add_parts(sums, p.parts(), w.M * w.N, w.out, w.dtype, w.add);
}

template std::int64_t part_floats<80>(const WeightGradient&);
template std::int64_t part_floats<90>(const WeightGradient&);
template void weight_gradient<80>(const WeightGradient&);
template void weight_gradient<90>(const WeightGradient&);

}  // namespace pygpt::cuda
