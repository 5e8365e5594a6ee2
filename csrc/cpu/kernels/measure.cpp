// The two loops behind cpu/measure.h: multiply-adds on registers, and a sum over memory.
//
// Both keep `chains` independent sums, so that neither the multiply-add's latency (4 to 6 cycles, one or two started
// per cycle) nor the load's is what is measured. They return what they computed so that no compiler drops the work.
#include "cpu/kernels/measure.h"
#include "cpu/kernels/simd.h"

namespace pygpt::cpu {
namespace {

constexpr int chains = 12;

// sums converge to 2, away from infinities and denormals. 2 · chains · lanes operations a round.
template <class T>
double multiply_add_loop(std::int64_t rounds) {
    using V = Vec<T>;
    const V half = V::broadcast(T(0.5)), one = V::broadcast(T(1));
    V sums[chains];
    for (int chain = 0; chain < chains; ++chain) sums[chain] = V::broadcast(T(chain));
    for (std::int64_t round = 0; round < rounds; ++round) {
        for (int chain = 0; chain < chains; ++chain) sums[chain] = fma(sums[chain], half, one);
    }
    double total = 0;
    for (int chain = 0; chain < chains; ++chain) total += reduce_add(sums[chain]);
    return total;
}

#if defined(__AVX512BF16__)
// Each lane of 16 adds two products of bfloat16 pairs: 4 · chains · lanes operations a round. The factors are 0, so
// that the sums stay finite; the processor takes no shorter way for it.
double bfloat16_loop(std::int64_t rounds) {
    const __m512bh left = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.5f));
    const __m512bh right = _mm512_cvtne2ps_pbh(_mm512_setzero_ps(), _mm512_setzero_ps());
    __m512 sums[chains];
    for (int chain = 0; chain < chains; ++chain) sums[chain] = _mm512_set1_ps(static_cast<float>(chain));
    for (std::int64_t round = 0; round < rounds; ++round) {
        for (int chain = 0; chain < chains; ++chain) sums[chain] = _mm512_dpbf16_ps(sums[chain], left, right);
    }
    double total = 0;
    for (int chain = 0; chain < chains; ++chain) total += _mm512_reduce_add_ps(sums[chain]);
    return total;
}
#endif

}  // namespace

template <>
MultiplyAdds multiply_adds<this_isa>(DType dtype, std::int64_t rounds) {
    switch (dtype) {
        case DType::float32:
            return {2.0 * chains * Vec<float>::lanes * rounds, multiply_add_loop<float>(rounds)};
#if defined(__AVX512BF16__)
        case DType::bfloat16:
            return {4.0 * chains * Vec<float>::lanes * rounds, bfloat16_loop(rounds)};
#endif
        case DType::float64:
            if constexpr (this_isa == Isa::scalar) return {2.0 * chains * rounds, multiply_add_loop<double>(rounds)};
            [[fallthrough]];
        default:
            return {0, 0};
    }
}

template <>
float read_sum<this_isa>(const float* data, std::int64_t count) {
    using V = Vec<float>;
    V sums[chains];
    for (V& sum : sums) sum = V::zero();
    std::int64_t i = 0;
    for (; i + chains * V::lanes <= count; i += chains * V::lanes) {
        for (int chain = 0; chain < chains; ++chain) sums[chain] = sums[chain] + V::load(data + i + chain * V::lanes);
    }
    float total = 0;
    for (const V& sum : sums) total += reduce_add(sum);
    return total;
}

}  // namespace pygpt::cpu
