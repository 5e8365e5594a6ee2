// The matrix product under every op: C = A · Bᵀ for operands A (M, K) on the left and B (N, K) on the right, each with
// its rows or its K contiguous, so that x·Wᵀ, dy·W and dyᵀ·x are the same code. What becomes of C is the caller's:
// tiles of finished sums are handed to a function.
//
// Every element of C is summed in one order: K in blocks of sum_steps(K) steps, each block one chain of fused
// multiply-adds in one lane of one accumulator, and the blocks' sums added one after the other. So its bits depend on
// its row, its column and K alone, not on M, N, the tile it falls into or the number of threads. (One chain over all of
// K would do too, but its error grows with K: at K = 3072 it was eight times that of PyTorch's product.)
//
//   registers   tile: `tile_rows` rows of A times `panel_columns` columns, all accumulators in registers; per step one
//               vector of B is multiplied with one broadcast element of every row
//   L2          a group of panels of B, which one panel of A after the other meets
//   L3          a block of A and a part of B, both packed by all threads together, `k_block` steps of them; and, where
//               K is longer, the sums so far
//
// So every element is packed once, but for those of B once a block of A's rows, and those of A, where K is longer than
// k_block, once a width of C whose sums fit. (B may come packed: pack_right.) Tasks are groups of columns times chunks
// of rows; each owns its part of C.
//
// Of a product of few rows the floor is not arithmetic but the reading of B. There a panel of B is packed sum_block
// steps at a time, into L1, and used at once; nothing of it is written to memory. A row costs the same alone as in a
// full tile, but for that reading: tiles of every height up to tile_rows are compiled.
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
constexpr std::int64_t short_sum_block = 32;                         // steps
constexpr std::int64_t k_block = 1024;                               // steps
constexpr std::int64_t left_block_bytes = std::int64_t{8} << 20;     // of A, packed, in L3
constexpr std::int64_t right_block_bytes = std::int64_t{2} << 20;    // of B, packed, in L3
constexpr std::int64_t sums_bytes = std::int64_t{8} << 20;           // of parts of K, in L3
constexpr std::int64_t right_group_bytes = std::int64_t{384} << 10;  // of B, packed, in L2
constexpr std::int64_t wanted_tasks = 64;
constexpr std::int64_t few_rows = 4 * tile_rows;

// The steps of K that one chain sums. Where K is short, a chain of sum_block would be all of it or half: what is small
// beside a large product that came before it is rounded away one by one there. (The gradient of a weight from 113 rows
// of softmax minus target had up to 2.3 times PyTorch's error.)
constexpr std::int64_t sum_steps(std::int64_t steps) {
    return steps <= 2 * sum_block ? short_sum_block : sum_block;
}

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

// Adds the products of `steps` steps, in chains of `chain`, to sums (rows, panel_columns); the first steps of K set
// them. Calls for parts of K start at multiples of sum_block.
template <class Math, int rows>
void tile(std::int64_t steps, std::int64_t chain, const typename Math::Left::type* left,
          const typename Math::Right::type* right, bool first, typename Math::Number* sums) {
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
        for (std::int64_t block = 0; block < steps; block += chain) {
            V accumulators[rows][vectors];
            for (auto& row : accumulators) std::fill(row, row + vectors, V::zero());
            for (std::int64_t step = std::min(chain, steps - block); step > 0; --step) {
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
using Tile = void (*)(std::int64_t, std::int64_t, const typename Math::Left::type*, const typename Math::Right::type*,
                      bool, typename Math::Number*);

// The tile of a height, 1 to tile_rows.
template <class Math>
Tile<Math> tile_of(std::int64_t rows) {
    static constexpr auto tiles = []<int... heights>(std::integer_sequence<int, heights...>) {
        return std::array<Tile<Math>, tile_rows>{&tile<Math, heights + 1>...};
    }(std::make_integer_sequence<int, tile_rows>());
    return tiles[static_cast<std::size_t>(rows - 1)];
}

// Fetches part of a matrix that is about to be written, or read and written.
template <class T>
void prefetch_matrix(const T* data, std::int64_t stride, std::int64_t rows, std::int64_t columns) {
    for (std::int64_t i = 0; i < rows; ++i) {
        const auto* row = reinterpret_cast<const char*>(data + i * stride);
        for (std::int64_t at = 0; at < columns * static_cast<std::int64_t>(sizeof(T)); at += line_bytes) {
            __builtin_prefetch(row + at, 1);
        }
    }
}

// Packs rows [row, row + rows) of an operand, `steps` steps from place k on, as panels of `height` rows one after the
// other, on several threads. The last panel has as many rows as are left, or, `padded`, as many as the others.
template <class Element, class Storage>
void pack_panels(const Operand<Storage>& source, std::int64_t row, std::int64_t rows, std::int64_t k, std::int64_t K,
                 std::int64_t steps, std::int64_t height, bool padded, typename Element::type* panels) {
    constexpr std::int64_t panels_per_task = 8;
    // Where neighbouring panels share cache lines and pages, few steps at a time, so that they are still at hand.
    const std::int64_t steps_at_once = source.k_stride == 1 ? std::max<std::int64_t>(1, steps) : 16;
    const bool whole_rows = steps * Element::k >= K;
    const std::int64_t count = divide_up(rows, height);
    parallel_for(divide_up(count, panels_per_task), [&](std::int64_t task) {
        const std::int64_t last = std::min(count, (task + 1) * panels_per_task);
        for (std::int64_t step = 0; step < steps; step += steps_at_once) {
            for (std::int64_t panel = task * panels_per_task; panel < last; ++panel) {
                const std::int64_t first = panel * height;
                const std::int64_t present = std::min(height, rows - first);
                const std::int64_t width = padded ? height : present;
                pack<Element>(source, row + first, present, k + step * Element::k, K,
                              std::min(steps_at_once, steps - step), width, whole_rows,
                              panels + first * steps + step * width);
            }
        }
    });
}

// Packs all of a right operand, for products to come: (panel, step, panel_columns), as ops/linear.h says.
template <class Storage, class RightStorage>
void pack_right(const Operand<RightStorage>& right, std::int64_t N, std::int64_t K,
                typename Arithmetic<Storage>::Right::type* panels) {
    using Math = Arithmetic<Storage>;
    pack_panels<typename Math::Right>(right, 0, N, 0, K, divide_up(K, Math::k), panel_columns, true, panels);
}

// Tells a `finish` which of its memory the next tile is for, so that it is fetched while the tile is computed.
template <class Finish>
void expect(const Finish& finish, std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
    if constexpr (requires { finish.expect(row, rows, column, columns); }) finish.expect(row, rows, column, columns);
}

// The product of few rows: B is used once, as it comes from memory, sum_block steps of a panel at a time.
template <class Storage, class RightStorage, class Finish>
void product_of_few_rows(const Operand<Storage>& left, const Operand<RightStorage>& right,
                         const typename Arithmetic<Storage>::Right::type* packed, std::int64_t M, std::int64_t N,
                         std::int64_t K, const Finish& finish) {
    using Math = Arithmetic<Storage>;
    using Number = typename Math::Number;
    using Left = typename Math::Left::type;
    using Right = typename Math::Right::type;
    const std::int64_t steps = divide_up(K, Math::k);
    const std::int64_t row_elements = steps * Math::k / Math::Left::k;  // of A's panels, a row
    const Scratch left_scratch(static_cast<std::size_t>(M * row_elements) * sizeof(Left));
    auto* const left_panels = static_cast<Left*>(left_scratch.data());
    pack_panels<typename Math::Left>(left, 0, M, 0, K, row_elements, tile_rows, false, left_panels);

    const std::int64_t column_panels = divide_up(N, panel_columns);
    // Long tasks: what a panel's packing fetches ahead is the next panel, which should be the same thread's.
    const std::int64_t group = std::max<std::int64_t>(1, column_panels / (4 * threads()));
    parallel_for(divide_up(column_panels, group), [&](std::int64_t task) {
        constexpr std::int64_t most_panels = divide_up(few_rows, tile_rows);
        alignas(64) Right piece[sum_block * panel_columns];
        alignas(64) Number sums[most_panels][tile_rows * panel_columns];
        const std::int64_t last = std::min((task + 1) * group, column_panels);
        for (std::int64_t panel = task * group; panel < last; ++panel) {
            const std::int64_t column = panel * panel_columns;
            const std::int64_t columns = std::min(panel_columns, N - column);
            for (std::int64_t step = 0; step == 0 || step < steps; step += sum_block) {
                const std::int64_t here = std::min(sum_block, steps - step);
                if (!packed) {
                    pack<typename Math::Right>(right, column, columns, step * Math::k, K, here, panel_columns, true,
                                               piece);
                }
                const Right* const right_at = packed ? packed + (panel * steps + step) * panel_columns : piece;
                for (std::int64_t row = 0; row < M; row += tile_rows) {
                    const std::int64_t height = std::min<std::int64_t>(tile_rows, M - row);
                    tile_of<Math>(height)(here, sum_steps(steps),
                                          left_panels + row * row_elements + step * (Math::k / Math::Left::k) * height,
                                          right_at, step == 0, sums[row / tile_rows]);
                }
            }
            for (std::int64_t row = 0; row < M; row += tile_rows) {
                finish(row, std::min<std::int64_t>(tile_rows, M - row), column, columns, sums[row / tile_rows]);
            }
        }
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
    if (M == 0 || N == 0) return;
    if (M <= few_rows) return product_of_few_rows(left, right, packed, M, N, K, finish);

    // Parts of equal size, as few as the limits allow; of K in whole sums.
    const auto part = [](std::int64_t total, std::int64_t most, std::int64_t unit) {
        return divide_up(divide_up(total, divide_up(total, std::max(most, unit))), unit) * unit;
    };
    constexpr std::int64_t tile_size = tile_rows * panel_columns;
    constexpr std::int64_t left_per_step = Math::k / Math::Left::k;
    constexpr auto tile_bytes = tile_size * static_cast<std::int64_t>(sizeof(Number));
    const std::int64_t steps = divide_up(K, Math::k);
    const std::int64_t block_steps =
        steps <= k_block ? std::max<std::int64_t>(1, steps) : part(steps, k_block, sum_block);
    const bool whole_k = steps <= block_steps;
    const auto row_bytes = block_steps * left_per_step * static_cast<std::int64_t>(sizeof(Left));
    const auto panel_bytes = block_steps * panel_columns * static_cast<std::int64_t>(sizeof(Right));
    const std::int64_t block_rows = part(M, left_block_bytes / row_bytes, tile_rows);
    const std::int64_t block_row_panels = block_rows / tile_rows;
    const std::int64_t all_panels = divide_up(N, panel_columns);
    const std::int64_t wide_panels =
        whole_k ? all_panels : part(all_panels, sums_bytes / (block_row_panels * tile_bytes), 1);
    const std::int64_t block_panels = part(wide_panels, right_block_bytes / panel_bytes, 1);
    const std::int64_t group = part(block_panels, std::min(block_panels / 4, right_group_bytes / panel_bytes), 1);
    const std::int64_t groups = divide_up(block_panels, group);
    const std::int64_t chunk =
        divide_up(block_row_panels, std::clamp<std::int64_t>(wanted_tasks / groups, 1, divide_up(block_row_panels, 4)));

    // A thread's tasks, which are neighbours, have rows in common where more of A is packed than of B, else columns:
    // what one thread alone has read need not be taken from another's cache when it is packed over. (Sharing A costs a
    // little more than sharing B.)
    const std::int64_t packed_rows = M * divide_up(all_panels, wide_panels);
    const std::int64_t packed_columns = N * divide_up(M, block_rows);
    const bool by_rows = 4 * packed_rows >= 3 * packed_columns;

    const Scratch left_scratch(static_cast<std::size_t>(block_rows * row_bytes));
    const Scratch right_scratch(packed ? 0 : static_cast<std::size_t>(block_panels * panel_bytes));
    const Scratch sums_scratch(whole_k ? 0 : static_cast<std::size_t>(block_row_panels * wide_panels * tile_bytes));
    auto* const left_panels = static_cast<Left*>(left_scratch.data());
    auto* const right_panels = static_cast<Right*>(right_scratch.data());
    auto* const all_sums = static_cast<Number*>(sums_scratch.data());

    for (std::int64_t first_row = 0; first_row < M; first_row += block_rows) {
        const std::int64_t rows = std::min(block_rows, M - first_row);
        const std::int64_t row_panels = divide_up(rows, tile_rows);
        // One part of B: its tiles, for `here` steps from `step` on. wide_panel is where the sums that are kept begin.
        const auto multiply = [&](std::int64_t step, std::int64_t here, std::int64_t wide_panel,
                                  std::int64_t first_panel, std::int64_t panels) {
            const Right* const right_block =
                packed ? packed + (first_panel * steps + step) * panel_columns : right_panels;
            const std::int64_t right_stride = (packed ? steps : here) * panel_columns;
            const std::int64_t chunks = divide_up(row_panels, chunk);
            const std::int64_t part_groups = divide_up(panels, group);
            const bool last = step + here >= steps;
            parallel_for(part_groups * chunks, [&](std::int64_t task) {
                alignas(64) Number own_sums[tile_size];
                const std::int64_t begin = (by_rows ? task % part_groups : task / chunks) * group;
                const std::int64_t end = std::min(begin + group, panels);
                const std::int64_t top = (by_rows ? task / part_groups : task % chunks) * chunk;
                const std::int64_t bottom = std::min(top + chunk, row_panels);
                for (std::int64_t row_panel = top; row_panel < bottom; ++row_panel) {
                    const std::int64_t row = row_panel * tile_rows;
                    const std::int64_t height = std::min<std::int64_t>(tile_rows, rows - row);
                    const Left* const left_at = left_panels + row * here * left_per_step;
                    for (std::int64_t panel = begin; panel < end; ++panel) {
                        const std::int64_t column = (first_panel + panel) * panel_columns;
                        const std::int64_t columns = std::min(panel_columns, N - column);
                        Number* sums = own_sums;
                        if (!whole_k) {
                            sums = all_sums + (row_panel * wide_panels + first_panel - wide_panel + panel) * tile_size;
                            prefetch_matrix(sums, panel_columns, height, panel_columns);
                        }
                        if (last) expect(finish, first_row + row, height, column, columns);
                        tile_of<Math>(height)(here, sum_steps(steps), left_at, right_block + panel * right_stride,
                                              step == 0, sums);
                        if (last) finish(first_row + row, height, column, columns, sums);
                    }
                }
            });
        };
        for (std::int64_t wide_panel = 0; wide_panel < all_panels; wide_panel += wide_panels) {
            const std::int64_t wide_end = std::min(wide_panel + wide_panels, all_panels);
            for (std::int64_t step = 0; step == 0 || step < steps; step += block_steps) {
                const std::int64_t here = std::min(block_steps, steps - step);
                pack_panels<typename Math::Left>(left, first_row, rows, step * Math::k, K, here * left_per_step,
                                                 tile_rows, false, left_panels);
                for (std::int64_t panel = wide_panel; panel < wide_end; panel += block_panels) {
                    const std::int64_t panels = std::min(block_panels, wide_end - panel);
                    const std::int64_t column = panel * panel_columns;
                    if (!packed) {
                        pack_panels<typename Math::Right>(right, column, std::min(panels * panel_columns, N - column),
                                                          step * Math::k, K, here, panel_columns, true, right_panels);
                    }
                    multiply(step, here, wide_panel, panel, panels);
                }
            }
        }
    }
}

}  // namespace
}  // namespace pygpt::cpu

#endif
