// Matrix products by mma.sync, and in float32 by fused multiply-adds.        a (M, K) · b (K, N) -> out (M, N)
//
// A block owns an output tile of 128 x 128 and walks over K in steps of 64 bytes; no two blocks write one element. Both
// operands' steps go through shared memory in a ring of 4 stages, filled by cp.async three steps ahead, so one barrier
// a step does: it says that the step has landed, and that everybody is done with the one whose place is filled next.
// Operands may lie with k along or across their rows; no one is transposed, ldmatrix does that. Blocks go through the
// output in patches of 8 tiles high, so that what runs at one time reads few different rows and columns from L2.
//
// 16-bit numbers: 4 warps, each a (64, 64) part, 32 mma.m16n8k16 for 8 ldmatrix.x4: below the rates of tensor cores and
// shared memory on every card since sm_80. Two blocks fit a multiprocessor: one finishes while the other multiplies.
//
// float32 is not made of three tf32 products: those drop the last bits of a · b, add with truncation and make NaN of
// infinity. 8 warps, each thread 8 x 8 elements, loads of 16 bytes along K or along the rows; sums of 128 steps are
// added to a total, so that the error grows with K as it does in a blocked product.
//
// Sums leave through shared memory: a lane takes 4 neighbours of a row, so whole rows of 128 are read and written.
// An element is summed over k in order, by the same instructions for any tile it may stand in: its bits depend on its
// row, its column and K. The floor is 2·M·N·K operations.
#include <algorithm>
#include <initializer_list>

#include "cuda/launch.h"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/matmul/product.h"
#include "cuda/number.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/tiles/fragments.cuh"
#include "cuda/tiles/pack.cuh"
#include "cuda/tiles/reduce.cuh"
#include "cuda/tiles/shared_tile.cuh"

namespace pygpt::cuda {
namespace {

constexpr int tile_m = 128;
constexpr int tile_n = 128;
constexpr int step_bytes = 64;
constexpr int stages = 4;
constexpr int patch_height = 8;  // tiles

template <class Storage_, Form form>
struct Traits {
    using Storage = Storage_;
    static constexpr bool a_across = form == Form::across_across;
    static constexpr bool b_across = form != Form::rows_rows;
    static constexpr int tile_k = step_bytes / static_cast<int>(sizeof(Storage));
    using TileA = SharedTile<Storage, a_across ? tile_k : tile_m, a_across ? tile_m : tile_k>;
    using TileB = SharedTile<Storage, b_across ? tile_k : tile_n, b_across ? tile_n : tile_k>;
    static constexpr bool by_fma = sizeof(Storage) == 4;
    static constexpr int threads = by_fma ? 256 : 128;
    static constexpr int blocks_per_multiprocessor = by_fma ? 1 : 2;
};

// Of the sums in shared memory: 8 floats more than a tile, so that rows 1 apart are 8 banks apart.
constexpr int sums_pitch = tile_n + 8;

template <class Traits>
struct Shared {
    struct Stage {
        typename Traits::TileA a;
        typename Traits::TileB b;
    };
    union {
        Stage stage[stages];
        float sums[tile_m * sums_pitch];  // after the last step
    };
};

// ---- The copies of one step ----

// A thread's part of an operand's copies, 16 bytes each: the same chunk of rows that are `row_step` apart, so that
// what is checked and worked out for one holds for all. A tile has k along its rows, or across.
template <class Tile, int threads, bool across>
class Copies {
  public:
    using Storage = typename Tile::Storage;
    static constexpr int row_step = threads / Tile::chunks;
    static constexpr int pieces = Tile::rows / row_step;
    // The swizzle repeats after 8 rows.
    static_assert(threads % Tile::chunks == 0 && Tile::rows % row_step == 0 && row_step % 8 == 0);

    // The operand from the tile's first place on, of which `left` places exist.
    __device__ Copies(const Storage* from, std::int64_t pitch, std::int64_t left, int thread) : pitch_(pitch) {
        const int row = thread / Tile::chunks;
        const int chunk = thread % Tile::chunks;
        const int column = chunk * Tile::chunk_elements;
        from_ = from + row * pitch + column;
        offset_ = Tile::offset(0, row, chunk);
        k_ = across ? row : column;
#pragma unroll
        for (int i = 0; i < pieces; ++i) exists_ |= unsigned{(across ? column : row + i * row_step) < left} << i;
    }

    // Starts the next step, of which `k_left` numbers of k exist.
    __device__ void start(std::uint32_t tile, int k_left) {
#pragma unroll
        for (int i = 0; i < pieces; ++i) {
            const bool exists = exists_ >> i & 1 && k_ + (across ? i * row_step : 0) < k_left;
            ptx::cp_async(tile + offset_ + i * row_step * Tile::row_bytes, from_ + i * row_step * pitch_, exists);
        }
        from_ += across ? Tile::rows * pitch_ : Tile::columns;
    }

  private:
    const Storage* from_;
    std::int64_t pitch_;
    std::uint32_t offset_;
    int k_;  // of the first piece, in its step
    unsigned exists_ = 0;
};

// ---- The products of one step, and the sums of a thread ----

template <class Traits>
class ByMma {
  public:
    using Storage = typename Traits::Storage;
    using TileA = typename Traits::TileA;
    using TileB = typename Traits::TileB;

    __device__ explicit ByMma(int thread)
        : lane_(thread % warp_lanes), row_(thread / warp_lanes / 2 * 64), column_(thread / warp_lanes % 2 * 64) {}

    __device__ void multiply(const TileA& a, const TileB& b, int) {
        const std::uint32_t a_tile = a.address();
        const std::uint32_t b_tile = b.address();
#pragma unroll
        for (int k = 0; k < Traits::tile_k; k += 16) {
            RowFragment rows[4];
            ColumnFragment columns[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if constexpr (Traits::a_across) {
                    load_rows_across<TileA>(rows[i], a_tile, row_ + i * 16, k, lane_);
                } else {
                    load_rows<TileA>(rows[i], a_tile, row_ + i * 16, k, lane_);
                }
                if constexpr (Traits::b_across) {
                    load_columns_across<TileB>(columns[i], b_tile, column_ + i * 16, k, lane_);
                } else {
                    load_columns<TileB>(columns[i], b_tile, column_ + i * 16, k, lane_);
                }
            }
            multiply_add<Storage>(sums_, rows, columns);
        }
    }

    __device__ void write(float* sums) {
        const int row = row_ + lane_ / 4;
        const int column = column_ + lane_ % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                float* to = sums + (row + i * 16) * sums_pitch + column + j * 8;
                *reinterpret_cast<float2*>(to) = {sums_[i][j][0], sums_[i][j][1]};
                *reinterpret_cast<float2*>(to + 8 * sums_pitch) = {sums_[i][j][2], sums_[i][j][3]};
            }
        }
    }

  private:
    int lane_;
    int row_, column_;       // of the warp's part
    float sums_[4][8][4]{};  // 16 rows, 8 columns
};

// A thread's 8 places along M or N are two groups of 4: neighbours where these lie in a row of the tile, else 16 apart.
// `which` of 16 threads has the places.
template <class Tile, bool across>
struct Places {
    static constexpr int sharers = 16;

    // Of group `group`, place `i`.
    __device__ static int at(int which, int group, int i) {
        return across ? (which + group * sharers) * 4 + i : which + (group * 4 + i) * sharers;
    }

    // The group's elements at k to k + 3.
    __device__ static void load(float (&value)[4][4], const Tile& tile, int which, int group, int k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (across) {
                const float4 chunk = read(tile, Tile::offset(0, k + i, which + group * sharers));
                value[0][i] = chunk.x;
                value[1][i] = chunk.y;
                value[2][i] = chunk.z;
                value[3][i] = chunk.w;
            } else {
                const float4 chunk = read(tile, Tile::offset((group * 4 + i) * sharers, which, k / 4));
                value[i][0] = chunk.x;
                value[i][1] = chunk.y;
                value[i][2] = chunk.z;
                value[i][3] = chunk.w;
            }
        }
    }

  private:
    __device__ static float4 read(const Tile& tile, std::uint32_t offset) {
        return *reinterpret_cast<const float4*>(tile.bytes + offset);
    }
};

template <class Traits>
class ByFma {
  public:
    using PlacesA = Places<typename Traits::TileA, Traits::a_across>;
    using PlacesB = Places<typename Traits::TileB, Traits::b_across>;
    static constexpr int steps_of_sum = 128 / Traits::tile_k;

    // A warp is 4 threads along M and 8 along N: those 8 read different chunks, which lie in different banks.
    __device__ explicit ByFma(int thread)
        : row_(thread / warp_lanes / 2 * 4 + thread % warp_lanes / 8),
          column_(thread / warp_lanes % 2 * 8 + thread % 8) {}

    __device__ void multiply(const typename Traits::TileA& a, const typename Traits::TileB& b, int step) {
#pragma unroll
        for (int k = 0; k < Traits::tile_k; k += 4) {
            float rows[2][4][4];
            PlacesA::load(rows[0], a, row_, 0, k);
            PlacesA::load(rows[1], a, row_, 1, k);
#pragma unroll
            for (int group = 0; group < 2; ++group) {
                float columns[4][4];
                PlacesB::load(columns, b, column_, group, k);
#pragma unroll
                for (int at = 0; at < 4; ++at) {
#pragma unroll
                    for (int i = 0; i < 8; ++i) {
#pragma unroll
                        for (int j = 0; j < 4; ++j) {
                            float& sum = sums_[i][group * 4 + j];
                            sum = fmaf(rows[i / 4][i % 4][at], columns[j][at], sum);
                        }
                    }
                }
            }
        }
        if ((step + 1) % steps_of_sum == 0) add_to_totals();
    }

    __device__ void write(float* sums) {
        add_to_totals();
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                sums[PlacesA::at(row_, i / 4, i % 4) * sums_pitch + PlacesB::at(column_, j / 4, j % 4)] = totals_[i][j];
            }
        }
    }

  private:
    __device__ void add_to_totals() {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                totals_[i][j] += sums_[i][j];
                sums_[i][j] = 0;
            }
        }
    }

    int row_, column_;  // which of the 16
    float sums_[8][8]{};
    float totals_[8][8]{};
};

// ---- The kernel ----

struct Parameters {
    Matrix a, b;
    std::int64_t M, N, K;
    Limit m_limit, k_limit;
    std::int64_t part_k;  // blockIdx.y's part of K has this length, and its own (M, N) in out
    bool packs;           // whole packs of 4 elements in all rows of the epilogue
    Epilogue epilogue;
};

// How many of a limit's rows there are, of `most` that the host says.
__device__ inline std::int64_t limited(const Limit& limit, std::int64_t most) {
    if (!limit.count) return most;
    const std::int64_t left = *limit.count - limit.first;
    return left < 0 ? 0 : left < most ? left : most;
}

struct TilePlace {
    std::int64_t m, n;
};
__device__ inline TilePlace tile_of_block(std::int64_t tiles_m, std::int64_t tiles_n) {
    const std::int64_t in_patch = patch_height * tiles_n;
    const std::int64_t first = blockIdx.x / in_patch * patch_height;
    const std::int64_t height = tiles_m - first < patch_height ? tiles_m - first : patch_height;
    const std::int64_t inside = blockIdx.x % in_patch;
    return {(first + inside % height) * tile_m, inside / height * tile_n};
}

template <class Traits, bool packs>
__device__ void finish(const Epilogue& e, std::int64_t part, const float* sums, std::int64_t m, std::int64_t n,
                       std::int64_t rows, std::int64_t left) {
    using Storage = typename Traits::Storage;
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    if (rows > tile_m) rows = tile_m;
    left -= lane * 4;
    if (left <= 0) return;
    const std::int64_t column = n + lane * 4;
    const Floats<4> bias = bias_of<packs, 4, Storage>(e, column, left);
    for (int row = static_cast<int>(threadIdx.x) / warp_lanes; row < rows; row += Traits::threads / warp_lanes) {
        const std::int64_t at = (e.row_of ? e.row_of[m + row] : m + row) * e.pitch + column;
        const float4 sum = *reinterpret_cast<const float4*>(sums + row * sums_pitch + lane * 4);
        finish_together<Precision::of_32_bits, packs, Storage>(e, part, at, left, bias,
                                                               Floats<4>{sum.x, sum.y, sum.z, sum.w});
    }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::threads, Traits::blocks_per_multiprocessor)
    product_sm80_kernel(const __grid_constant__ Parameters p) {
    using Storage = typename Traits::Storage;
    using TileA = typename Traits::TileA;
    using TileB = typename Traits::TileB;
    extern __shared__ __align__(128) unsigned char memory[];
    auto& shared = *reinterpret_cast<Shared<Traits>*>(memory);
    const int thread = static_cast<int>(threadIdx.x);

    const std::int64_t M = limited(p.m_limit, p.M);
    const TilePlace tile = tile_of_block((p.M + tile_m - 1) / tile_m, (p.N + tile_n - 1) / tile_n);
    if (tile.m >= M) return;
    const std::int64_t k_first = blockIdx.y * p.part_k;
    const std::int64_t k_end = limited({p.k_limit.count, p.k_limit.first + k_first},
                                       p.K - k_first < p.part_k ? p.K - k_first : p.part_k);  // from k_first on
    const int steps = static_cast<int>((k_end + Traits::tile_k - 1) / Traits::tile_k);

    const auto* const a = static_cast<const Storage*>(p.a.data) +
                          (Traits::a_across ? k_first * p.a.pitch + tile.m : tile.m * p.a.pitch + k_first);
    const auto* const b = static_cast<const Storage*>(p.b.data) +
                          (Traits::b_across ? k_first * p.b.pitch + tile.n : tile.n * p.b.pitch + k_first);
    Copies<TileA, Traits::threads, Traits::a_across> copies_a(a, p.a.pitch, M - tile.m, thread);
    Copies<TileB, Traits::threads, Traits::b_across> copies_b(b, p.b.pitch, p.N - tile.n, thread);
    const auto start = [&](int step) {
        const auto& stage = shared.stage[step % stages];
        const std::int64_t k_left = k_end - std::int64_t{step} * Traits::tile_k;
        const int left = k_left < Traits::tile_k ? static_cast<int>(k_left) : Traits::tile_k;
        copies_a.start(stage.a.address(), left);
        copies_b.start(stage.b.address(), left);
    };

    std::conditional_t<Traits::by_fma, ByFma<Traits>, ByMma<Traits>> sums(thread);
    for (int step = 0; step < stages - 1; ++step) {
        if (step < steps) start(step);
        ptx::cp_async_commit();
    }
    for (int step = 0; step < steps; ++step) {
        ptx::cp_async_wait<stages - 2>();
        __syncthreads();
        if (step + stages - 1 < steps) start(step + stages - 1);
        ptx::cp_async_commit();
        const auto& stage = shared.stage[step % stages];
        sums.multiply(stage.a, stage.b, step);
    }
    __syncthreads();  // the sums lie where the stages were
    sums.write(shared.sums);
    __syncthreads();

    const std::int64_t part = blockIdx.y * p.M * p.N;  // in out
    if (p.packs) {
        finish<Traits, true>(p.epilogue, part, shared.sums, tile.m, tile.n, M - tile.m, p.N - tile.n);
    } else {
        finish<Traits, false>(p.epilogue, part, shared.sums, tile.m, tile.n, M - tile.m, p.N - tile.n);
    }
}

template <class Traits>
void launch_product(const Parameters& parameters, std::int64_t parts) {
    static_assert(sizeof(Shared<Traits>) <= shared_bytes_everywhere);
    const std::int64_t tiles = divide_up(parameters.M, tile_m) * divide_up(parameters.N, tile_n);
    launch(product_sm80_kernel<Traits>,
           {.grid = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(parts)),
            .block = Traits::threads,
            .shared_bytes = sizeof(Shared<Traits>)},
           parameters);
}

}  // namespace

template <>
void product<80>(const Product& p) {
    const std::int64_t parts = p.parts();
    const Epilogue& e = p.epilogue;
    const Parameters parameters{
        .a = p.a,
        .b = p.b,
        .M = p.M,
        .N = p.N,
        .K = p.K,
        .m_limit = p.m_limit,
        .k_limit = p.k_limit,
        .part_k = p.part_k == 0 ? p.K : p.part_k,
        .packs = in_packs(e, 4, p.N),
        .epilogue = e,
    };
    with_storage(p.dtype, [&](auto storage) {
        using Storage = decltype(storage);
        switch (p.form) {
            case Form::rows_rows:
                return launch_product<Traits<Storage, Form::rows_rows>>(parameters, parts);
            case Form::rows_across:
                return launch_product<Traits<Storage, Form::rows_across>>(parameters, parts);
            case Form::across_across:
                return launch_product<Traits<Storage, Form::across_across>>(parameters, parts);
        }
    });
}

}  // namespace pygpt::cuda
