// The matrix product under every op: C = A · Bᵀ for operands A (M, K) on the left and B (N, K) on the right, each with
// its rows or its K contiguous, so that x·Wᵀ, dy·W and dyᵀ·x are the same code. What becomes of C is the caller's:
// tiles of finished sums are handed to a function.
//
// Every element of C is summed in one order: K in blocks of `sum_block` steps, each block one chain of fused
// multiply-adds in one lane of one accumulator, and the blocks' sums added one after the other. So its bits depend on
// its row, its column and K alone, not on M, N, the tile it falls into or the number of threads. (One chain over all of
// K would do too, but its error grows with K: at K = 3072 it was eight times that of PyTorch's product.)
//
//   registers   tile: `tile_rows` rows of A times `panel_columns` columns, all accumulators in registers; per step one
//               vector of B is multiplied with one broadcast element of every row
//   L1, L2      a group of panels of B, `k_block` steps of them, packed by the task that uses them (or by the caller
//               once, for many products: pack_right); A's panels stream past
//   L3          a block of A's rows, packed by all threads together before the tasks start
//
// Tasks are groups of columns, times chunks of rows where the columns are few; each owns its part of C. A row costs the
// same alone as in a full tile, but for the reading of B: tiles of every height up to tile_rows are compiled.
#ifndef PYGPT_CPU_KERNELS_GEMM_H
#define PYGPT_CPU_KERNELS_GEMM_H

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "cpu/kernels/panel.h"
#include "cpu/kernels/simd.h"
#include "cpu/thread_pool.h"
#include "ops/linear.h"

namespace pygpt::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int tile_rows = 14;  // of 32 registers: 28 accumulators, 2 vectors of B, a broadcast element of A
#elif defined(__AVX2__)
constexpr int tile_rows = 6;  // of 16 registers: 12 accumulators, 2 vectors of B, a broadcast element of A
#else
constexpr int tile_rows = 4;
#endif
constexpr std::int64_t panel_columns = linear::panel_columns;
constexpr std::int64_t sum_block = 128;                              // steps
constexpr std::int64_t k_block = 1024;                               // steps
constexpr std::int64_t left_block_bytes = std::int64_t{8} << 20;     // of A, packed, in L3
constexpr std::int64_t right_group_bytes = std::int64_t{384} << 10;  // of B, packed, in L2
constexpr std::int64_t wanted_tasks = 64;

// How numbers of a storage type are multiplied. A step reads `k` places: Left::k elements of A's panel a row, one of
// B's a column.
template <class Storage>
struct Arithmetic {
    using Number = compute_t<Storage>;
    using Left = Single<Number>;
    using Right = Single<Number>;
    static constexpr std::int64_t k = 1;

    template <int rows, int vectors>
    [[gnu::always_inline]] static void step(const Number* left, const Number* right,
                                            Vec<Number> (&sums)[rows][vectors]) {
        Vec<Number> columns[vectors];
        for (int v = 0; v < vectors; ++v) columns[v] = Vec<Number>::load(right + v * Vec<Number>::lanes);
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row) {
            const Vec<Number> element = Vec<Number>::broadcast(left[row]);
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) sums[row][v] = fma(element, columns[v], sums[row][v]);
        }
    }
};

#if defined(__AVX512BF16__)

// Two products a lane and instruction, added to a float32 sum. The instruction takes denormal numbers for zero.
template <>
struct Arithmetic<bfloat16> {
    using Number = float;
    using Left = Pair;
    using Right = Pair;
    static constexpr std::int64_t k = 2;

    template <int rows, int vectors>
    [[gnu::always_inline]] static void step(const std::uint32_t* left, const std::uint32_t* right,
                                            Float (&sums)[rows][vectors]) {
        __m512i columns[vectors];
        for (int v = 0; v < vectors; ++v) columns[v] = _mm512_loadu_si512(right + v * Float::lanes);
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row) {
            const __m512i pair = _mm512_set1_epi32(static_cast<int>(left[row]));
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) {
                sums[row][v].v = _mm512_dpbf16_ps(sums[row][v].v, reinterpret_cast<__m512bh>(pair),
                                                  reinterpret_cast<__m512bh>(columns[v]));
            }
        }
    }
};

#else

// Widened to float32: A when it is packed, B as it is read, so that its panels stay half as long.
template <>
struct Arithmetic<bfloat16> {
    using Number = float;
    using Left = Single<float>;
    using Right = Pair;
    static constexpr std::int64_t k = 2;

    template <int rows, int vectors>
    [[gnu::always_inline]] static void step(const float* left, const std::uint32_t* right,
                                            Vec<float> (&sums)[rows][vectors]) {
#pragma GCC unroll 2
        for (int place = 0; place < 2; ++place) {
            Vec<float> columns[vectors];
            for (int v = 0; v < vectors; ++v) {
                const std::uint32_t* p = right + v * Vec<float>::lanes;
                columns[v] = place == 0 ? lower_of_pairs(p) : upper_of_pairs(p);
            }
#pragma GCC unroll 16
            for (int row = 0; row < rows; ++row) {
                const Vec<float> element = Vec<float>::broadcast(left[place * rows + row]);
#pragma GCC unroll 16
                for (int v = 0; v < vectors; ++v) sums[row][v] = fma(element, columns[v], sums[row][v]);
            }
        }
    }
};

#endif

// Adds the products of `steps` steps to sums (rows, panel_columns); the first steps of K set them. Calls for parts of K
// start at multiples of sum_block.
template <class Math, int rows>
void tile(std::int64_t steps, const typename Math::Left::type* left, const typename Math::Right::type* right,
          bool first, typename Math::Number* sums) {
    using Number = typename Math::Number;
    using V = Vec<Number>;
    constexpr int wanted_vectors = V::lanes == 1 ? 8 : rows * 4 <= 12 ? 4 : 2;
    constexpr int vectors = std::min<int>(wanted_vectors, panel_columns / V::lanes);
    constexpr std::int64_t left_step = rows * Math::k / Math::Left::k;
    constexpr std::int64_t prefetched = 16;  // steps
    for (std::int64_t column = 0; column < panel_columns; column += vectors * V::lanes) {
        const auto* a = left;
        const auto* b = right + column;
        const auto each_sum = [&](auto f) {
            for (int row = 0; row < rows; ++row) {
                for (int v = 0; v < vectors; ++v) f(row, v, sums + row * panel_columns + column + v * V::lanes);
            }
        };
        if (first) each_sum([](int, int, auto* sum) { V::zero().store(sum); });
        for (std::int64_t block = 0; block < steps; block += sum_block) {
            V accumulators[rows][vectors];
            for (auto& row : accumulators) std::fill(row, row + vectors, V::zero());
            for (std::int64_t step = std::min(sum_block, steps - block); step > 0; --step) {
                __builtin_prefetch(b + prefetched * panel_columns);
                __builtin_prefetch(b + prefetched * panel_columns + panel_columns / 2);
                Math::template step<rows, vectors>(a, b, accumulators);
                a += left_step;
                b += panel_columns;
            }
            each_sum([&](int row, int v, auto* sum) { (V::load(sum) + accumulators[row][v]).store(sum); });
        }
    }
}

template <class Math>
using Tile = void (*)(std::int64_t, const typename Math::Left::type*, const typename Math::Right::type*, bool,
                      typename Math::Number*);

// The tile of a height, 1 to tile_rows.
template <class Math>
Tile<Math> tile_of(std::int64_t rows) {
    static constexpr auto tiles = []<int... heights>(std::integer_sequence<int, heights...>) {
        return std::array<Tile<Math>, tile_rows>{&tile<Math, heights + 1>...};
    }(std::make_integer_sequence<int, tile_rows>());
    return tiles[static_cast<std::size_t>(rows - 1)];
}

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

// Packs all of a right operand, for products to come: (panel, step, panel_columns), as ops/linear.h says.
template <class Storage, class RightStorage>
void pack_right(const Operand<RightStorage>& right, std::int64_t N, std::int64_t K,
                typename Arithmetic<Storage>::Right::type* panels) {
    using Math = Arithmetic<Storage>;
    const std::int64_t steps = divide_up(K, Math::k);
    parallel_for(divide_up(N, panel_columns), [&](std::int64_t panel) {
        const std::int64_t column = panel * panel_columns;
        pack<typename Math::Right>(right, column, std::min(panel_columns, N - column), 0, K, steps, panel_columns,
                                   panels + panel * steps * panel_columns);
    });
}

// Calls finish(row, rows, column, columns, sums) for tiles of C that together cover it, on several threads; sums are
// (rows, panel_columns), of which `columns` belong to C. With `packed`, what pack_right made of B is read instead of B.
// Numbers are multiplied as A's dtype has it; a float32 B is rounded to it.
template <class Storage, class RightStorage, class Finish>
void product(const Operand<Storage>& left, const Operand<RightStorage>& right,
             const typename Arithmetic<Storage>::Right::type* packed, std::int64_t M, std::int64_t N, std::int64_t K,
             const Finish& finish) {
    using Math = Arithmetic<Storage>;
    using Number = typename Math::Number;
    using Left = typename Math::Left::type;
    using Right = typename Math::Right::type;
    const std::int64_t steps = divide_up(K, Math::k);
    const std::int64_t row_elements = steps * Math::k / Math::Left::k;  // of A's panels, a row
    const auto row_bytes = row_elements * static_cast<std::int64_t>(sizeof(Left));
    const std::int64_t block_rows =
        std::max<std::int64_t>(1, left_block_bytes / std::max<std::int64_t>(1, row_bytes * tile_rows)) * tile_rows;

    const std::int64_t column_panels = divide_up(N, panel_columns);
    const std::int64_t block_steps = std::clamp<std::int64_t>(steps, 1, k_block);
    const auto panel_bytes = block_steps * panel_columns * static_cast<std::int64_t>(sizeof(Right));
    const std::int64_t group = std::clamp<std::int64_t>(column_panels / (wanted_tasks / 4), 1,
                                                        std::max<std::int64_t>(1, right_group_bytes / panel_bytes));
    const std::int64_t groups = divide_up(column_panels, group);

    for (std::int64_t first_row = 0; first_row < M; first_row += block_rows) {
        const std::int64_t rows = std::min(block_rows, M - first_row);
        const std::int64_t row_panels = divide_up(rows, tile_rows);
        const Scratch left_scratch(static_cast<std::size_t>(rows * row_bytes));
        auto* left_panels = static_cast<Left*>(left_scratch.data());
        // A few panels a task and a few steps at a time: where A's rows are contiguous, whole cache lines are used.
        constexpr std::int64_t pack_panels = 8;
        constexpr std::int64_t pack_steps = 128;
        parallel_for(divide_up(row_panels, pack_panels), [&](std::int64_t task) {
            for (std::int64_t step = 0; step < row_elements; step += pack_steps) {
                const std::int64_t last = std::min(row_panels, (task + 1) * pack_panels);
                for (std::int64_t panel = task * pack_panels; panel < last; ++panel) {
                    const std::int64_t row = panel * tile_rows;
                    const std::int64_t height = std::min<std::int64_t>(tile_rows, rows - row);
                    pack<typename Math::Left>(left, first_row + row, height, step * Math::Left::k, K,
                                              std::min(pack_steps, row_elements - step), height,
                                              left_panels + row * row_elements + step * height);
                }
            }
        });

        const std::int64_t chunk = divide_up(
            row_panels,
            std::clamp<std::int64_t>(wanted_tasks / std::max<std::int64_t>(1, groups), 1, divide_up(row_panels, 8)));
        const std::int64_t chunks = divide_up(row_panels, chunk);
        parallel_for(groups * chunks, [&](std::int64_t task) {
            const std::int64_t first_panel = task / chunks * group;
            const std::int64_t last_panel = std::min(first_panel + group, column_panels);
            const std::int64_t top = task % chunks * chunk;
            const std::int64_t bottom = std::min(top + chunk, row_panels);
            const bool whole_k = steps <= block_steps;
            constexpr std::int64_t tile_size = tile_rows * panel_columns;
            const Scratch right_scratch(packed ? 0 : static_cast<std::size_t>(group * panel_bytes));
            const Scratch sums_scratch(static_cast<std::size_t>(whole_k ? 1 : group * chunk) * tile_size *
                                       sizeof(Number));
            auto* const right_panels = static_cast<Right*>(right_scratch.data());
            auto* const all_sums = static_cast<Number*>(sums_scratch.data());
            for (std::int64_t step = 0; step == 0 || step < steps; step += block_steps) {
                const std::int64_t here = std::min(block_steps, steps - step);
                const auto right_at = [&](std::int64_t panel) {
                    return packed ? packed + (panel * steps + step) * panel_columns
                                  : right_panels + (panel - first_panel) * here * panel_columns;
                };
                for (std::int64_t panel = first_panel; !packed && panel < last_panel; ++panel) {
                    const std::int64_t column = panel * panel_columns;
                    pack<typename Math::Right>(right, column, std::min(panel_columns, N - column), step * Math::k, K,
                                               here, panel_columns,
                                               right_panels + (panel - first_panel) * here * panel_columns);
                }
                for (std::int64_t row_panel = top; row_panel < bottom; ++row_panel) {
                    const std::int64_t row = row_panel * tile_rows;
                    const std::int64_t height = std::min<std::int64_t>(tile_rows, rows - row);
                    const Left* left_at = left_panels + row * row_elements + step * (Math::k / Math::Left::k) * height;
                    for (std::int64_t panel = first_panel; panel < last_panel; ++panel) {
                        Number* sums = whole_k
                                           ? all_sums
                                           : all_sums + ((row_panel - top) * group + panel - first_panel) * tile_size;
                        tile_of<Math>(height)(here, left_at, right_at(panel), step == 0, sums);
                        if (step + here >= steps) {
                            const std::int64_t column = panel * panel_columns;
                            finish(first_row + row, height, column, std::min(panel_columns, N - column), sums);
                        }
                    }
                }
            }
        });
    }
}

}  // namespace
}  // namespace pygpt::cpu

#endif
