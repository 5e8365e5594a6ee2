#include "tensor_core.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "options.h"

namespace emulator {
namespace {

// value = significand * 2^(exponent - fraction bits of the format); exponent is kNone for zero.
struct Decoded {
    i32 significand, exponent;
};
constexpr i32 kNone = -100000;

struct Format {
    int exponent_bits, fraction_bits, bias;
};
constexpr Format format_of(TensorInput type) {
    switch (type) {
        case TensorInput::bf16:
            return {8, 7, 127};
        case TensorInput::fp16:
            return {5, 10, 15};
        case TensorInput::tf32:
            return {8, 10, 127};
        case TensorInput::e4m3:
            return {4, 3, 7};
        case TensorInput::e5m2:
            return {5, 2, 15};
    }
    return {};
}

// The bits of a tf32 operand are those of a float whose last 13 do not count.
constexpr u32 normalised_bits(u32 bits, TensorInput type) {
    return type == TensorInput::tf32 ? bits >> 13 : bits;
}

Decoded decode(u32 bits, TensorInput type) {
    const Format f = format_of(type);
    const u32 x = normalised_bits(bits, type);
    const i32 exponent = static_cast<i32>(x >> f.fraction_bits & ((1u << f.exponent_bits) - 1));
    const i32 fraction = static_cast<i32>(x & ((1u << f.fraction_bits) - 1));
    const i32 magnitude = exponent ? fraction | 1 << f.fraction_bits : fraction;
    if (magnitude == 0) return {0, kNone};
    const bool negative = x >> (f.exponent_bits + f.fraction_bits) & 1;
    return {negative ? -magnitude : magnitude, std::max(exponent, 1) - f.bias};
}

// sum * 2^scale, cut toward zero to a float.
float cut_to_float(i64 sum, int scale) {
    if (sum == 0) return 0.0f;
    u64 magnitude = sum < 0 ? 0 - static_cast<u64>(sum) : static_cast<u64>(sum);
    const u32 sign = sum < 0 ? 0x80000000u : 0;
    const int width = 64 - std::countl_zero(magnitude), top = width - 1 + scale;
    if (top > 127) return std::bit_cast<float>(sign | 0x7f800000u);
    const int keep = top >= -126 ? 24 : 24 - (-126 - top);
    if (keep <= 0) return std::bit_cast<float>(sign);
    if (width > keep)
        magnitude >>= width - keep;
    else
        magnitude <<= keep - width;
    const u32 exponent = top >= -126 ? static_cast<u32>(top + 127) : 0;
    return std::bit_cast<float>(
        sign | (exponent ? exponent << 23 | (static_cast<u32>(magnitude) & 0x7fffffu) : static_cast<u32>(magnitude)));
}

Decoded decode_float(float x) {
    const u32 bits = std::bit_cast<u32>(x);
    const i32 exponent = static_cast<i32>(bits >> 23 & 255), fraction = static_cast<i32>(bits & 0x7fffff);
    const i32 magnitude = exponent ? fraction | 1 << 23 : fraction;
    if (magnitude == 0) return {0, kNone};
    return {bits >> 31 ? -magnitude : magnitude, std::max(exponent, 1) - 127};
}

i64 shifted_toward_zero(i64 x, i32 by) {
    const i64 magnitude = (x < 0 ? -x : x) >> std::min(by, 62);
    return x < 0 ? -magnitude : magnitude;
}

}  // namespace

TensorCoreModel mma_model(int arch, TensorInput type) {
    const bool tf32 = type == TensorInput::tf32, fp8 = bytes_of(type) == 1;
    if (arch >= 90) return {tf32 ? 8 : fp8 ? 32 : 16, fp8 ? 13 : 25, -133};
    return {tf32 ? 4 : fp8 ? 16 : 8, fp8 ? 13 : 24, -132};
}

TensorCoreModel wgmma_model(TensorInput type) {
    TensorCoreModel m = mma_model(90, type);
    const u64 seed = options().arith_seed;
    if (seed == 0) return m;
    // Each differs from the guess in some products of one instruction: its block, and fraction bits more or less.
    static constexpr struct {
        int divisor, more_bits;
    } variants[] = {{2, 0}, {1, 1}, {4, -1}, {1, -1}, {2, 1}};
    const auto& v = variants[(seed - 1) % std::size(variants)];
    m.block /= v.divisor;
    m.fraction_bits += v.more_bits;
    return m;
}

float input_to_float(u32 bits, TensorInput type) {
    switch (type) {
        case TensorInput::bf16:
            return bfloat16_to_float(static_cast<u16>(bits));
        case TensorInput::fp16:
            return half_to_float(static_cast<u16>(bits));
        case TensorInput::tf32:
            return std::bit_cast<float>(bits & 0xffffe000u);
        case TensorInput::e4m3:
            return float8_to_float(static_cast<u8>(bits), Float8::e4m3);
        case TensorInput::e5m2:
            return float8_to_float(static_cast<u8>(bits), Float8::e5m2);
    }
    return 0;
}

void fused_multiply_add(const u32* a, const u32* b, float* d, int rows, int columns, int k, std::size_t d_pitch,
                        TensorInput type) {
    std::vector<float> y(static_cast<std::size_t>(k * columns));
    for (int i = 0; i < k * columns; ++i) y[static_cast<std::size_t>(i)] = input_to_float(b[i], type);
    for (int r = 0; r < rows; ++r)
        for (int i = 0; i < k; ++i) {
            const float x = input_to_float(a[r * k + i], type);
            float* row = d + static_cast<std::size_t>(r) * d_pitch;
            const float* z = &y[static_cast<std::size_t>(i * columns)];
            for (int n = 0; n < columns; ++n) row[n] = std::fma(x, z[n], row[n]);
        }
}

namespace {

// ---- One result, whatever its factors are: the model in integers.
// a: k consecutive elements; b: k elements, b_pitch apart.
float one_result(const u32* a, const u32* b, std::size_t b_pitch, float c, int k, TensorInput type,
                 const TensorCoreModel& model) {
    const auto b_at = [&](int i) { return b[static_cast<std::size_t>(i) * b_pitch]; };
    double plain = static_cast<double>(c);
    for (int i = 0; i < k; ++i)
        plain += static_cast<double>(input_to_float(a[i], type)) * static_cast<double>(input_to_float(b_at(i), type));
    // Whatever the order, infinities and NaN give the same; a NaN is 0x7fffffff.
    if (std::isnan(plain)) return std::bit_cast<float>(0x7fffffffu);
    if (std::isinf(plain)) return static_cast<float>(plain);
    // Products have twice the format's fraction bits; all terms are brought to `bits` of them.
    const int product_bits = 2 * format_of(type).fraction_bits, bits = model.fraction_bits;
    for (int first = 0; first < k; first += model.block) {
        const int last = std::min(k, first + model.block);
        const Decoded old = decode_float(c);
        i32 largest = std::max(old.exponent, model.alignment_floor);
        for (int i = first; i < last; ++i)
            largest = std::max(largest, decode(a[i], type).exponent + decode(b_at(i), type).exponent);
        const auto aligned = [&](i64 significand, int fraction_bits, i32 exponent) {
            const int up = std::max(0, bits - fraction_bits), down = std::max(0, fraction_bits - bits);
            return significand ? shifted_toward_zero(significand << up, largest - exponent + down) : 0;
        };
        i64 sum = aligned(old.significand, 23, old.exponent);
        for (int i = first; i < last; ++i) {
            const Decoded x = decode(a[i], type), y = decode(b_at(i), type);
            sum += aligned(static_cast<i64>(x.significand) * y.significand, product_bits, x.exponent + y.exponent);
        }
        c = cut_to_float(sum, largest - bits);
    }
    return c;
}

// ---- Eight results of a row at a time, in floats, where no exponent is extreme. The same bits: a product of two
// factors is exact in a float, so is its scaling by the power of two that leaves the kept fraction bits before the
// point, and the conversion to an integer cuts toward zero. A product that is too small for a float is cut to 0 beside
// a sum that is not small.
constexpr int kWidth = 8;
using Floats = float __attribute__((vector_size(4 * kWidth)));
using Ints = i32 __attribute__((vector_size(4 * kWidth)));
using Doubles = double __attribute__((vector_size(8 * kWidth)));
using Longs = i64 __attribute__((vector_size(8 * kWidth)));
constexpr i32 kExponentMask = 0x7f800000;

constexpr i32 bits_of_power(int exponent) {
    return (exponent + 127) << 23;
}
constexpr i32 kMostFactor = bits_of_power(40);    // of factors that are not extreme
constexpr i32 kSmallFactor = bits_of_power(-60);  // products of larger ones are no less than 2^-120
constexpr i32 kLeastSum = bits_of_power(-99);     // of all terms' largest power, unless all are 0

template <class To, class From>
To vector_cast(From x) {
    static_assert(sizeof(To) == sizeof(From));
    return reinterpret_cast<To>(x);
}
Floats load(const float* p) {
    Floats x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
Ints larger(Ints a, Ints b) {
    return a > b ? a : b;
}
bool any(Ints x) {
    i64 parts[sizeof x / 8], all = 0;
    std::memcpy(parts, &x, sizeof x);
    for (i64 part : parts) all |= part;
    return all != 0;
}

// Factors as floats, and the powers of two that the model takes for theirs.
struct Factors {
    std::vector<float>& value;
    std::vector<float>& power;
    bool extreme = false;  // one is beyond the limit above, infinite or no number
    bool small = false;    // one is

    void read(const u32* from, std::size_t count, TensorInput type);
};
void Factors::read(const u32* from, std::size_t count, TensorInput type) {
    value.resize(count);
    power.resize(count);
    float* __restrict to_value = value.data();
    float* __restrict to_power = power.data();
    const i32 least = bits_of_power(1 - format_of(type).bias);  // of a subnormal number
    i32 beyond = 0, below = 0;
    const auto read = [&](auto bits_of_float) {
        for (std::size_t i = 0; i < count; ++i) {
            const u32 bits = bits_of_float(from[i]);
            const i32 exponent = static_cast<i32>(bits) & kExponentMask, some = (bits << 1) ? -1 : 0;
            beyond |= exponent > kMostFactor ? -1 : 0;
            below |= some & (exponent < kSmallFactor ? -1 : 0);
            to_value[i] = std::bit_cast<float>(bits);
            to_power[i] = std::bit_cast<float>(some & (exponent < least ? least : exponent));
        }
    };
    switch (type) {
        case TensorInput::bf16:
            read([](u32 x) { return x << 16; });
            break;
        case TensorInput::tf32:
            read([](u32 x) { return x & 0xffffe000u; });
            break;
        case TensorInput::fp16:
            // Its exponents, one of subnormals included, are floats'; infinities and NaN become extreme.
            read([](u32 x) {
                const float scaled =
                    std::bit_cast<float>((x & 0x7fff) << 13) * std::bit_cast<float>(bits_of_power(112));
                const u32 far = (x & 0x7c00) == 0x7c00 ? static_cast<u32>(kExponentMask) : 0;
                return std::bit_cast<u32>(scaled) | far | (x & 0x8000) << 16;
            });
            break;
        default:
            read([&](u32 x) { return std::bit_cast<u32>(input_to_float(x, type)); });
    }
    extreme = beyond != 0;
    small = below != 0;
}

// Eight results, of one row of A and eight columns of B; true in `extreme` where they do not hold.
Floats eight_results(const float* a_value, const float* a_power, const float* b_value, const float* b_power,
                     std::size_t b_pitch, Floats c, int k, const TensorCoreModel& model, bool small, Ints& extreme) {
    const i32 bits = model.fraction_bits;
    for (int first = 0; first < k; first += model.block) {
        const int last = std::min(k, first + model.block), half = std::min(last, first + std::max(1, model.block / 2));
        const Ints c_power = vector_cast<Ints>(c) & kExponentMask;
        Ints largest = c_power;
        for (int i = first; i < last; ++i)  // powers of two multiply to powers of two, and order as their bits do
            largest =
                larger(largest, vector_cast<Ints>(a_power[i] * load(b_power + static_cast<std::size_t>(i) * b_pitch)));
        const Ints any_term = small ? Ints{} == 0 : (largest != 0) | (c != 0.0f);  // other than 0; perhaps
        extreme |= (c_power == kExponentMask) | (any_term & (largest < kLeastSum));
        largest = larger(largest, kLeastSum - Ints{});
        const Floats up = vector_cast<Floats>(((254 + bits) << 23) - largest);
        const auto terms = [&](int from, int to) {  // few enough for 32 bits
            Ints sum = {};
            for (int i = from; i < to; ++i)
                sum += __builtin_convertvector(a_value[i] * load(b_value + static_cast<std::size_t>(i) * b_pitch) * up,
                                               Ints);
            return sum;
        };
        const Doubles sum = __builtin_convertvector(terms(first, half), Doubles) +
                            __builtin_convertvector(terms(half, last), Doubles) +
                            __builtin_convertvector(__builtin_convertvector(c * up, Ints), Doubles);
        // A double has 29 fraction bits more than a float: those are cut.
        const Doubles cut = vector_cast<Doubles>(vector_cast<Longs>(sum) & ~((i64{1} << 29) - 1));
        const Floats down = vector_cast<Floats>(largest - (bits << 23));
        c = __builtin_convertvector(cut * __builtin_convertvector(down, Doubles), Floats);
    }
    return c;
}

}  // namespace

void tensor_core(const u32* a, const u32* b, float* d, int rows, int columns, int k, std::size_t d_pitch,
                 TensorInput type, const TensorCoreModel& model) {
    const std::size_t pitch = static_cast<std::size_t>(columns), depth = static_cast<std::size_t>(k);
    static thread_local std::vector<float> memory[4];
    Factors x{memory[0], memory[1]}, y{memory[2], memory[3]};
    x.read(a, static_cast<std::size_t>(rows) * depth, type);
    y.read(b, depth * pitch, type);
    for (std::size_t n = 0; n < pitch; n += kWidth)
        for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
            float* place = d + r * d_pitch + n;
            if (!x.extreme && !y.extreme) {
                Ints extreme = {};
                const Floats results = eight_results(&x.value[r * depth], &x.power[r * depth], &y.value[n], &y.power[n],
                                                     pitch, load(place), k, model, x.small || y.small, extreme);
                if (!any(extreme)) {
                    std::memcpy(place, &results, sizeof results);
                    continue;
                }
            }
            for (std::size_t i = 0; i < kWidth; ++i)
                place[i] = one_result(a + r * depth, b + n + i, pitch, place[i], k, type, model);
        }
}

}  // namespace emulator
