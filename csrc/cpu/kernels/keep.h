// Which elements dropout keeps: 64 decisions at a time, as core/philox.h lays them out.
//
// A vector has a word of as many blocks as it has lanes of 64 bits, in their lower halves, which are all that a product
// of 32 bits reads: what products leave in the upper halves can stay there. Two vectors, of even and odd blocks, go
// through the rounds side by side, and their words are joined at the end. An element costs some three instructions of
// AVX-512, six of AVX2.
#ifndef PYGPT_CPU_KERNELS_KEEP_H
#define PYGPT_CPU_KERNELS_KEEP_H

#include "core/philox.h"
#include "cpu/kernels/simd.h"

namespace pygpt::cpu {
namespace {

#if defined(__AVX512F__)

struct Halves {
    static constexpr int lanes = 8;
    __m512i v;

    static Halves broadcast(std::uint32_t word) { return {_mm512_set1_epi64(word)}; }
    static Halves ascending() { return {_mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0)}; }
    static Halves sum(Halves a, Halves b) { return {_mm512_add_epi32(a.v, b.v)}; }
    static Halves product(Halves a, Halves b) { return {_mm512_mul_epu32(a.v, b.v)}; }
    static Halves upper_xor(Halves a, Halves b, Halves c) {
        return {_mm512_ternarylogic_epi64(_mm512_srli_epi64(a.v, 32), b.v, c.v, 0x96)};
    }
    // keep[i] = scale, or 0 if the word is below `drop_below`: of even and odd blocks in turn.
    static void decide(Halves even, Halves odd, std::uint32_t drop_below, float scale, float* keep) {
        const __m512i words = _mm512_mask_blend_epi32(0xaaaa, even.v, _mm512_slli_epi64(odd.v, 32));
        const __mmask16 kept = _mm512_cmpge_epu32_mask(words, _mm512_set1_epi32(static_cast<int>(drop_below)));
        _mm512_storeu_ps(keep, _mm512_maskz_mov_ps(kept, _mm512_set1_ps(scale)));
    }
};

#elif defined(__AVX2__)

struct Halves {
    static constexpr int lanes = 4;
    __m256i v;

    static Halves broadcast(std::uint32_t word) { return {_mm256_set1_epi64x(word)}; }
    static Halves ascending() { return {_mm256_set_epi64x(6, 4, 2, 0)}; }
    static Halves sum(Halves a, Halves b) { return {_mm256_add_epi32(a.v, b.v)}; }
    static Halves product(Halves a, Halves b) { return {_mm256_mul_epu32(a.v, b.v)}; }
    static Halves upper_xor(Halves a, Halves b, Halves c) {
        return {_mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(a.v, 32), b.v), c.v)};
    }
    // keep[i] = scale, or 0 if the word is below `drop_below`: of even and odd blocks in turn.
    static void decide(Halves even, Halves odd, std::uint32_t drop_below, float scale, float* keep) {
        const __m256i words = _mm256_blend_epi32(even.v, _mm256_slli_epi64(odd.v, 32), 0xaa);
        const __m256i bound = _mm256_set1_epi32(static_cast<int>(drop_below));
        const __m256 kept = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_max_epu32(words, bound), words));
        _mm256_storeu_ps(keep, _mm256_and_ps(kept, _mm256_set1_ps(scale)));
    }
};

#endif

// keep[e] = scale if element 64·n + e of a row is kept, else 0. counter.word[0] is the group's first block, 16·n.
template <class Number>
void keep_group(std::uint64_t key, const philox::Words& counter, std::uint32_t drop_below, Number scale, Number* keep) {
    constexpr int blocks = philox::blocks_per_group;
#if defined(__AVX2__)
    const Halves multiplier0 = Halves::broadcast(philox::multiplier0);
    const Halves multiplier1 = Halves::broadcast(philox::multiplier1);
    for (int first = 0; first < blocks; first += 2 * Halves::lanes) {
        Halves word[4][2];
        for (int odd = 0; odd < 2; ++odd) {
            const Halves begin = Halves::broadcast(counter.word[0] + static_cast<std::uint32_t>(first + odd));
            word[0][odd] = Halves::sum(begin, Halves::ascending());
            for (int i = 1; i < 4; ++i) word[i][odd] = Halves::broadcast(counter.word[i]);
        }
        Halves key0 = Halves::broadcast(philox::low(key));
        Halves key1 = Halves::broadcast(philox::high(key));
#pragma GCC unroll 10
        for (int round = 0; round < philox::rounds; ++round) {
#pragma GCC unroll 2
            for (int odd = 0; odd < 2; ++odd) {
                const Halves a = Halves::product(multiplier0, word[0][odd]);
                const Halves b = Halves::product(multiplier1, word[2][odd]);
                word[0][odd] = Halves::upper_xor(b, word[1][odd], key0);
                word[1][odd] = b;
                word[2][odd] = Halves::upper_xor(a, word[3][odd], key1);
                word[3][odd] = a;
            }
            key0 = Halves::sum(key0, Halves::broadcast(philox::key_step0));
            key1 = Halves::sum(key1, Halves::broadcast(philox::key_step1));
        }
        for (int i = 0; i < 4; ++i) {
            Halves::decide(word[i][0], word[i][1], drop_below, scale, keep + i * blocks + first);
        }
    }
#else
    for (int block = 0; block < blocks; ++block) {
        philox::Words place = counter;
        place.word[0] += static_cast<std::uint32_t>(block);
        const philox::Words bits = philox::bits(key, place);
        for (int i = 0; i < 4; ++i) keep[i * blocks + block] = bits.word[i] < drop_below ? Number(0) : scale;
    }
#endif
}

}  // namespace
}  // namespace pygpt::cpu

#endif
