// quantized_linear: out = activation(x · weightᵀ + bias) + residual     (M, K) · (K, N) -> (M, N), weight in 8 or 4
// bits
//
// x is rounded first, all of it: per row and group of 32 places, whole numbers of 15 bits and their step. Then, for
// every panel of 32 columns and tile of up to `tile_rows` rows, one group after the other: the weight's whole numbers
// of the group, in registers, are multiplied with those of every row, exactly, and the row's float32 sums take in
//
//   int8   step · Σ (q - 128)·x          and at the end, per column, · scale
//   int4   step · scale · Σ q·x  +  offset · step · Σ x
//
// With VNNI, which multiplies bytes (unsigned by signed) four places at a time, x is split into two digits, x = 128 ·
// upper + lower, and both meet the same weights: Σ q·upper, shifted left by 7, goes on as the start of Σ q·lower.
// Without it, products are of 16-bit numbers, in pairs.
//
// Tasks are groups of panels times chunks of tiles; each owns its part of out. The floor is, for few rows, reading the
// weight once: 8 or 5 bits a number; for many, 4·M·N·K operations of VNNI, two digits: as many instructions as in
// bfloat16.
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/kernels/linear_parts.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

using quantized_linear::Scheme;

constexpr std::int64_t group_places = quantized_linear::group_places;
constexpr std::int64_t group_numbers = panel_columns * group_places;
static_assert(panel_columns == quantized_linear::panel_columns);
constexpr std::int64_t rows_in_tile = 32;
constexpr float largest_place = 16256.0f;  // 127 · 128: what two digits hold

using V = Vec<float>;

#if defined(__AVX512VNNI__)

struct Places {  // of one row and group: x = 128 · upper + lower
    std::int8_t upper[group_places];
    std::int8_t lower[group_places];  // from -64 to 63

    void set(const std::int32_t* values) {
        for (std::int64_t i = 0; i < group_places; ++i) {
            const std::int32_t digit = (values[i] + 64) >> 7;
            upper[i] = static_cast<std::int8_t>(digit);
            lower[i] = static_cast<std::int8_t>(values[i] - (digit << 7));
        }
    }
};

#else

struct Places {
    std::int16_t values[group_places];

    void set(const std::int32_t* from) {
        for (std::int64_t i = 0; i < group_places; ++i) values[i] = static_cast<std::int16_t>(from[i]);
    }
};

#endif

// The rows of x, rounded: tile after tile, in it group after group, in it row after row.
struct Rounded {
    std::int64_t groups;
    Places* places;
    float* steps;
    std::int32_t* sums;  // Σ x, in whole numbers

    std::int64_t at(std::int64_t row, std::int64_t group, std::int64_t M) const {
        const std::int64_t first = row / rows_in_tile * rows_in_tile;
        return first * groups + group * std::min(rows_in_tile, M - first) + (row - first);
    }
};

template <class Storage>
void round_row(const Storage* x, std::int64_t row, std::int64_t M, std::int64_t K, const Rounded& rounded) {
    for (std::int64_t group = 0; group < rounded.groups; ++group) {
        const std::int64_t first = group * group_places;
        float values[group_places];
        for (std::int64_t i = 0; i < group_places; i += V::lanes) {
            V::load(x + first + i, std::clamp(K - first - i, std::int64_t{0}, V::lanes)).store(values + i);
        }
        std::uint32_t largest_bits = 0;  // of magnitudes: in the order of their values, NaN above all
        for (const float value : values) {
            std::uint32_t bits;
            std::memcpy(&bits, &value, sizeof bits);
            largest_bits = std::max(largest_bits, bits & 0x7fffffff);
        }
        float largest;
        std::memcpy(&largest, &largest_bits, sizeof largest);
        const bool finite = largest_bits < 0x7f800000;
        const bool counts = finite && largest >= 0x1p-110f;
        const float inverse = counts ? largest_place / largest : 0.0f;
        // To nearest even: what is added leaves no bits for less than 1.
        constexpr float rounder = 0x1.8p23f;
        std::int32_t places[group_places];
        std::int32_t sum = 0;
        for (std::int64_t i = 0; i < group_places; ++i) {
            const float whole = counts ? (values[i] * inverse + rounder) - rounder : 0.0f;
            places[i] = static_cast<std::int32_t>(whole);
            sum += places[i];
        }
        const std::int64_t at = rounded.at(row, group, M);
        rounded.places[at].set(places);
        rounded.steps[at] = counts ? largest / largest_place : finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        rounded.sums[at] = sum;
    }
}

// The float32 numbers of a panel's columns, which lie at any address.
inline V load_single(const std::uint8_t* p) {
    float values[V::lanes];
    std::memcpy(values, p, sizeof values);
    return V::load(values);
}

// The float16 numbers of a group's columns.
inline V load_half(const std::uint8_t* p) {
#if defined(__AVX512F__)
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
#elif defined(__AVX2__)
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
#else
    std::uint16_t half;
    std::memcpy(&half, p, sizeof half);
    const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7fff) << 13;
    float value;
    std::memcpy(&value, &magnitude, sizeof value);
    value *= 0x1p112f;  // the exponents' biases differ by that
    return {(half & 0x8000) != 0 ? -value : value};
#endif
}

// Bytes of the packed weight.
template <Scheme scheme>
struct Form;
template <>
struct Form<Scheme::int8> {
    static constexpr std::int64_t panel_head = panel_columns * 4;
    static constexpr std::int64_t group_head = 0;
    static constexpr std::int64_t group_bytes = group_numbers;
};
template <>
struct Form<Scheme::int4> {
    static constexpr std::int64_t panel_head = 0;
    static constexpr std::int64_t group_head = panel_columns * 4;
    static constexpr std::int64_t group_bytes = group_head + group_numbers / 2;
};

// The whole numbers of a group, and f(row, column, V) for their exact sums of products with `rows` rows.
template <Scheme scheme>
class Group {
  public:
#if defined(__AVX512VNNI__)
    static constexpr int rows_at_once = 4;

    explicit Group(const std::uint8_t* q) {
        if constexpr (scheme == Scheme::int8) {
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) numbers_[i] = _mm512_loadu_si512(q + i * 64);
        } else {
            const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                const __m512i pairs = _mm512_loadu_si512(q + i * 64);
                numbers_[i] = _mm512_and_si512(pairs, mask);
                numbers_[8 + i] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), mask);
            }
        }
    }

    template <int rows, class F>
    [[gnu::always_inline]] void multiply(const Places* places, const std::int32_t* sums, const F& f) const {
        __m512i sum[rows][2];
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row) {
            // -128 · Σ x, before the shift
            sum[row][0] = scheme == Scheme::int8 ? _mm512_set1_epi32(-sums[row]) : _mm512_setzero_si512();
            sum[row][1] = sum[row][0];
        }
        add_digits<rows>([&](int row) { return places[row].upper; }, sum);
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row) {
            sum[row][0] = _mm512_slli_epi32(sum[row][0], 7);
            sum[row][1] = _mm512_slli_epi32(sum[row][1], 7);
        }
        add_digits<rows>([&](int row) { return places[row].lower; }, sum);
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row) {
            f(row, 0, V{_mm512_cvtepi32_ps(sum[row][0])});
            f(row, 16, V{_mm512_cvtepi32_ps(sum[row][1])});
        }
    }

  private:
    template <int rows, class Digits>
    [[gnu::always_inline]] void add_digits(const Digits& digits, __m512i (&sum)[rows][2]) const {
#pragma GCC unroll 8
        for (int step = 0; step < 8; ++step) {
#pragma GCC unroll 4
            for (int row = 0; row < rows; ++row) {
                std::int32_t four;
                std::memcpy(&four, digits(row) + step * 4, sizeof four);
                const __m512i digit = _mm512_set1_epi32(four);
                sum[row][0] = _mm512_dpbusd_epi32(sum[row][0], numbers_[2 * step], digit);
                sum[row][1] = _mm512_dpbusd_epi32(sum[row][1], numbers_[2 * step + 1], digit);
            }
        }
    }

    __m512i numbers_[16];  // (8, 32 columns, 4 places) bytes
#else
    static constexpr int rows_at_once = 1;

    explicit Group(const std::uint8_t* q) {
        constexpr std::int64_t half = group_numbers / 2;
        for (std::int64_t i = 0; i < (scheme == Scheme::int8 ? group_numbers : half); ++i) {
            if constexpr (scheme == Scheme::int8) {
                numbers_[i] = static_cast<std::int16_t>(q[i] - 128);
            } else {
                numbers_[i] = static_cast<std::int16_t>(q[i] & 15);
                numbers_[half + i] = static_cast<std::int16_t>(q[i] >> 4);
            }
        }
    }

    template <int rows, class F>
    [[gnu::always_inline]] void multiply(const Places* places, const std::int32_t*, const F& f) const {
        static_assert(rows == 1);
        const std::int16_t* const x = places->values;
#if defined(__AVX512F__)
        __m512i sum[4] = {};  // each of 8 columns, two neighbouring partial sums each
        for (int step = 0; step < 8; ++step) {
            long long four;
            std::memcpy(&four, x + step * 4, sizeof four);
            const __m512i place = _mm512_set1_epi64(four);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const __m512i numbers = _mm512_loadu_si512(numbers_ + step * 128 + i * 32);
                sum[i] = _mm512_add_epi32(sum[i], _mm512_madd_epi16(numbers, place));
            }
        }
        const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
        const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        for (int i = 0; i < 2; ++i) {
            const __m512i total = _mm512_add_epi32(_mm512_permutex2var_epi32(sum[2 * i], even, sum[2 * i + 1]),
                                                   _mm512_permutex2var_epi32(sum[2 * i], odd, sum[2 * i + 1]));
            f(0, i * 16, V{_mm512_cvtepi32_ps(total)});
        }
#elif defined(__AVX2__)
        __m256i sum[8] = {};  // each of 4 columns, two neighbouring partial sums each
        for (int step = 0; step < 8; ++step) {
            long long four;
            std::memcpy(&four, x + step * 4, sizeof four);
            const __m256i place = _mm256_set1_epi64x(four);
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                const auto* p = reinterpret_cast<const __m256i*>(numbers_ + step * 128 + i * 16);
                sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(_mm256_load_si256(p), place));
            }
        }
        for (int i = 0; i < 4; ++i) {  // hadd leaves columns 0 1 4 5 2 3 6 7
            const __m256i total = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[2 * i], sum[2 * i + 1]), 0xd8);
            f(0, i * 8, V{_mm256_cvtepi32_ps(total)});
        }
#else
        for (int column = 0; column < panel_columns; ++column) {
            std::int32_t sum = 0;
            for (int place = 0; place < group_places; ++place) {
                sum += numbers_[place / 4 * 128 + column * 4 + place % 4] * x[place];
            }
            f(0, column, V{static_cast<float>(sum)});
        }
#endif
    }

  private:
    alignas(64) std::int16_t numbers_[group_numbers];  // (8, 32 columns, 4 places)
#endif
};

// sums (height, panel_columns): a panel times the rows of a tile, whose first element in `rounded` is `at`.
template <Scheme scheme>
void tile(const std::uint8_t* panel, const Rounded& rounded, std::int64_t at, std::int64_t height, float* sums) {
    using F = Form<scheme>;
    constexpr std::int64_t prefetched = 4096;  // bytes
    std::fill(sums, sums + height * panel_columns, 0.0f);
    const std::uint8_t* p = panel + F::panel_head;
    for (std::int64_t index = 0; index < rounded.groups; ++index, p += F::group_bytes, at += height) {
        for (std::int64_t line = 0; line < F::group_bytes; line += line_bytes)
            __builtin_prefetch(p + prefetched + line);
        const Group<scheme> group(p + F::group_head);
        V scale[panel_columns / V::lanes];
        V offset[panel_columns / V::lanes];
        if constexpr (scheme == Scheme::int4) {
            for (std::int64_t v = 0; v < panel_columns / V::lanes; ++v) {
                scale[v] = load_half(p + v * V::lanes * 2);
                offset[v] = load_half(p + (panel_columns + v * V::lanes) * 2);
            }
        }
        const auto rows = [&]<int count>(std::int64_t row, std::integral_constant<int, count>) {
            group.template multiply<count>(
                rounded.places + at + row, rounded.sums + at + row, [&](int i, int column, V total) {
                    float* const sum = sums + (row + i) * panel_columns + column;
                    const float step = rounded.steps[at + row + i];
                    V now = V::load(sum);
                    if constexpr (scheme == Scheme::int4) {
                        const float all = step * static_cast<float>(rounded.sums[at + row + i]);
                        now = fma(offset[column / V::lanes], V::broadcast(all), now);
                        total = total * scale[column / V::lanes];
                    }
                    fma(total, V::broadcast(step), now).store(sum);
                });
        };
        constexpr int most = Group<scheme>::rows_at_once;
        std::int64_t row = 0;
        for (; row + most <= height; row += most) rows(row, std::integral_constant<int, most>());
        for (; row < height; ++row) rows(row, std::integral_constant<int, 1>());
    }
    if constexpr (scheme == Scheme::int8) {
        for (std::int64_t row = 0; row < height; ++row) {
            for (std::int64_t column = 0; column < panel_columns; column += V::lanes) {
                float* const sum = sums + row * panel_columns + column;
                (V::load(sum) * load_single(panel + column * 4)).store(sum);
            }
        }
    }
}

template <Scheme scheme, class Storage>
void forward_typed(const quantized_linear::Forward& a) {
    using F = Form<scheme>;
    constexpr std::int64_t panel_group_bytes = std::int64_t{256} << 10;  // of the weight, in L2
    if (a.M == 0 || a.N == 0) return;
    will_write(a.out);
    const std::int64_t groups = divide_up(a.K, group_places);
    const std::int64_t panel_bytes = F::panel_head + groups * F::group_bytes;
    const auto* const weight = static_cast<const std::uint8_t*>(a.weight.data);
    const Epilogue<Storage> epilogue{
        .N = a.N,
        .bias = Either<Storage>(a.bias),
        .activation = a.activation,
        .residual = Either<Storage>(a.residual),
        .out = Either<Storage>(a.out),
    };

    const auto count = static_cast<std::size_t>(a.M * groups);
    const Scratch places(count * sizeof(Places));
    const Scratch steps(count * sizeof(float));
    const Scratch sums(count * sizeof(std::int32_t));
    const Rounded rounded{groups, static_cast<Places*>(places.data()), static_cast<float*>(steps.data()),
                          static_cast<std::int32_t*>(sums.data())};
    const auto* const x = static_cast<const Storage*>(a.x.data);
    parallel_for(a.M, [&](std::int64_t row) { round_row(x + row * a.K, row, a.M, a.K, rounded); });

    const std::int64_t panels = divide_up(a.N, panel_columns);
    const std::int64_t tiles = divide_up(a.M, rows_in_tile);
    const std::int64_t in_cache =
        tiles == 1 ? panels : std::max<std::int64_t>(1, panel_group_bytes / std::max<std::int64_t>(1, panel_bytes));
    const std::int64_t panels_a_task = std::clamp<std::int64_t>(panels / (4 * threads()), 1, in_cache);
    const std::int64_t panel_tasks = divide_up(panels, panels_a_task);
    const std::int64_t chunks = std::clamp<std::int64_t>(wanted_tasks / panel_tasks, 1, divide_up(tiles, 4));
    const std::int64_t tiles_a_chunk = divide_up(tiles, chunks);
    parallel_for(panel_tasks * chunks, [&](std::int64_t task) {
        alignas(64) float sums_of_tile[rows_in_tile * panel_columns];
        const std::int64_t first_panel = task / chunks * panels_a_task;
        const std::int64_t last_panel = std::min(first_panel + panels_a_task, panels);
        const std::int64_t first_row = task % chunks * tiles_a_chunk * rows_in_tile;
        const std::int64_t last_row = std::min(a.M, first_row + tiles_a_chunk * rows_in_tile);
        for (std::int64_t row = first_row; row < last_row; row += rows_in_tile) {
            const std::int64_t height = std::min(rows_in_tile, a.M - row);
            for (std::int64_t panel = first_panel; panel < last_panel; ++panel) {
                const std::int64_t column = panel * panel_columns;
                tile<scheme>(weight + panel * panel_bytes, rounded, rounded.at(row, 0, a.M), height, sums_of_tile);
                epilogue(row, height, column, std::min(panel_columns, a.N - column), sums_of_tile);
            }
        }
    });
}

}  // namespace

template <>
void quantized_linear_forward<this_isa>(const quantized_linear::Forward& a) {
    const auto with_scheme = [&](auto storage) {
        if (a.scheme == Scheme::int8) {
            forward_typed<Scheme::int8, decltype(storage)>(a);
        } else {
            forward_typed<Scheme::int4, decltype(storage)>(a);
        }
    };
    if (a.x.dtype == DType::bfloat16) {
        with_scheme(bfloat16{});
    } else {
        with_scheme(float{});
    }
}

}  // namespace pygpt::cpu
