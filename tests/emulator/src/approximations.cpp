#include "approximations.h"

#include <cmath>

#include "options.h"

namespace emulator {
namespace {

// A number in [-1, 1] that seed and arguments determine (SplitMix64's finaliser).
double noise(u64 salt, u64 argument) {
    u64 z = options().arith_seed * 0x9e3779b97f4a7c15ull + salt * 0xbf58476d1ce4e5b9ull + argument;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) / static_cast<double>(1ull << 52) - 1.0;
}

double exact(Approximate function, double x) {
    switch (function) {
        case Approximate::ex2:
            return std::exp2(x);
        case Approximate::lg2:
            return std::log2(x);
        case Approximate::rcp:
            return 1.0 / x;
        case Approximate::sqrt:
            return std::sqrt(x);
        case Approximate::rsqrt:
            return 1.0 / std::sqrt(x);
        case Approximate::sin:
            return std::sin(x);
        case Approximate::cos:
            return std::cos(x);
        case Approximate::tanh:
            return std::tanh(x);
    }
    return 0;
}

// The largest error that the manual allows (PTX ISA, 9.7.3.13 to 9.7.3.22, 9.7.4.9 and
// 9.7.4.10: the text of each instruction).
double bound(Approximate function, double x, double result) {
    const double magnitude = std::fabs(result);
    switch (function) {
        case Approximate::ex2:
            return magnitude * 0x1p-22;
        case Approximate::lg2:
            return x > 0.5 && x < 2 ? 0x1p-22 : magnitude * 0x1p-22;
        case Approximate::rcp:
            return magnitude * 0x1p-23;
        case Approximate::sqrt:
            return magnitude * 0x1p-23;
        case Approximate::rsqrt:
            return magnitude * 0x1.1p-23;  // 2^-22.9
        case Approximate::sin:
        case Approximate::cos:
            return 0x1.6p-21;  // 2^-20.5
        case Approximate::tanh:
            return magnitude * 0x1p-11;
    }
    return 0;
}

}  // namespace

float approximate(Approximate function, float x) {
    const double result = exact(function, x);
    if (options().arith_seed == 0 || !std::isfinite(result) || !std::isfinite(x) || result == 0 || x == 0)
        return static_cast<float>(result);
    const double n = noise(static_cast<u64>(function), std::bit_cast<u32>(x));
    double changed = result + 0.99 * n * bound(function, x, result);
    if (function == Approximate::tanh && std::fabs(changed) > 1) changed = std::copysign(1.0, changed);
    return static_cast<float>(changed);
}

double approximate64(Approximate function, double x) {
    const double result = exact(function, x);
    if (options().arith_seed == 0 || !std::isfinite(result) || result == 0) return result;
    return result * (1 + noise(static_cast<u64>(function) + 100, std::bit_cast<u64>(x)) * 0x1p-23);
}

float approximate_quotient(float a, float b) {
    const double result = static_cast<double>(a) / static_cast<double>(b);
    if (options().arith_seed == 0 || !std::isfinite(result) || result == 0) return static_cast<float>(result);
    const u64 argument = static_cast<u64>(std::bit_cast<u32>(a)) << 32 | std::bit_cast<u32>(b);
    return static_cast<float>(result * (1 + noise(200, argument) * 0x1.8p-24));  // with rounding below 2 ulp
}

}  // namespace emulator
