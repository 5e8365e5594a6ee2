#include "tensor_core.h"

#include <algorithm>
#include <cmath>
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

bool is_finite(u32 bits, TensorInput type) {
    const Format f = format_of(type);
    const u32 x = normalised_bits(bits, type);
    const u32 all = (1u << f.exponent_bits) - 1;
    if (type == TensorInput::e4m3) return (x & 0x7f) != 0x7f;
    return (x >> f.fraction_bits & all) != all;
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

void tensor_core(const u32* a, const u32* b, float* d, int rows, int columns, int k, std::size_t d_pitch,
                 TensorInput type, const TensorCoreModel& model) {
    // Products have twice the format's fraction bits; all terms are brought to `bits` of them.
    const int product_bits = 2 * format_of(type).fraction_bits, bits = model.fraction_bits;
    const int up = std::max(0, bits - product_bits), down = std::max(0, product_bits - bits);
    const std::size_t n_columns = static_cast<std::size_t>(columns);
    std::vector<i32> b_significand(static_cast<std::size_t>(k) * n_columns), b_exponent(b_significand.size());
    std::vector<i32> largest(n_columns);
    std::vector<i64> sum(n_columns);
    bool finite = true;
    for (int i = 0; i < k * columns; ++i) {
        const Decoded x = decode(b[i], type);
        b_significand[static_cast<std::size_t>(i)] = x.significand;
        b_exponent[static_cast<std::size_t>(i)] = x.exponent;
        finite &= is_finite(b[i], type);
    }
    for (int r = 0; r < rows; ++r) {
        float* row = d + static_cast<std::size_t>(r) * d_pitch;
        Decoded row_a[64];
        bool row_finite = finite;
        for (int i = 0; i < k; ++i) {
            row_a[i] = decode(a[r * k + i], type);
            row_finite &= is_finite(a[r * k + i], type);
        }
        for (int n = 0; n < columns && row_finite; ++n) row_finite = std::isfinite(row[n]);
        if (!row_finite) {  // whatever the order, infinities and NaN give the same; a NaN is 0x7fffffff
            for (int n = 0; n < columns; ++n) {
                double s = static_cast<double>(row[n]);
                for (int i = 0; i < k; ++i)
                    s += static_cast<double>(input_to_float(a[r * k + i], type)) *
                         static_cast<double>(input_to_float(b[i * columns + n], type));
                if (std::isfinite(s)) {  // this column has none of them
                    float one = row[n];
                    std::vector<u32> column(static_cast<std::size_t>(k));
                    for (int i = 0; i < k; ++i) column[static_cast<std::size_t>(i)] = b[i * columns + n];
                    tensor_core(a + r * k, column.data(), &one, 1, 1, k, 1, type, model);
                    row[n] = one;
                } else {
                    row[n] = std::isnan(s) ? std::bit_cast<float>(0x7fffffffu) : static_cast<float>(s);
                }
            }
            continue;
        }
        for (int first = 0; first < k; first += model.block) {
            const int last = std::min(k, first + model.block);
            for (int n = 0; n < columns; ++n) {
                const Decoded c = decode_float(row[n]);
                largest[static_cast<std::size_t>(n)] = std::max(c.exponent, model.alignment_floor);
            }
            for (int i = first; i < last; ++i) {
                const i32 e = row_a[i].exponent;
                const i32* f = &b_exponent[static_cast<std::size_t>(i) * n_columns];
                for (std::size_t n = 0; n < n_columns; ++n) largest[n] = std::max(largest[n], e + f[n]);
            }
            for (std::size_t n = 0; n < n_columns; ++n) {
                const Decoded c = decode_float(row[n]);
                const i64 wide = bits >= 23 ? static_cast<i64>(c.significand) << (bits - 23) : c.significand;
                sum[n] =
                    c.significand ? shifted_toward_zero(wide, largest[n] - c.exponent + std::max(0, 23 - bits)) : 0;
            }
            for (int i = first; i < last; ++i) {
                const i64 x = static_cast<i64>(row_a[i].significand) << up;
                const i32 e = row_a[i].exponent - down;
                const i32* y = &b_significand[static_cast<std::size_t>(i) * n_columns];
                const i32* f = &b_exponent[static_cast<std::size_t>(i) * n_columns];
                for (std::size_t n = 0; n < n_columns; ++n) {
                    const i64 product = x * y[n], sign = product >> 63;
                    const i64 magnitude = (product ^ sign) - sign;
                    const i64 cut = magnitude >> std::min(largest[n] - e - f[n], 62);
                    sum[n] += (cut ^ sign) - sign;
                }
            }
            for (std::size_t n = 0; n < n_columns; ++n) row[n] = cut_to_float(sum[n], largest[n] - bits);
        }
    }
}

}  // namespace emulator
