// Philox4x32-10: random bits as a function of (key, counter), on every backend the same.
//
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3 and table 2. Nothing
// is kept between calls, so a backward pass or a recomputation asks for the same bits again, and no order of work,
// tiling or thread count can change them.
//
// What pygpt asks for: the key is the seed of a batch row (a seed s gives row b the key s + b: the row's index itself
// is not part of the stream), and the counter is one of
//
//   dropout            {block low, block high, 0, Site::dropout}           element i of the row
//   attention dropout  {block, query, head, Site::attention}               key i seen by that query of that head
//   sampling           {position low, position high, 0, Site::sample}      a token at that position
//
// where elements take their 32 bits from (block, word) = place(i): of 64 consecutive elements, the 16 blocks give word
// 0 to the first 16, word 1 to the next, and so on. Vectors of 8 or 16 lanes then hold one word of consecutive blocks,
// and a thread of a CUDA tile holds all four words of its block. Positions count from the row's own first token.
//
// The functions are constexpr, which is also what lets device code call them, and of internal linkage (cpu/kernels).
#ifndef PYGPT_CORE_PHILOX_H
#define PYGPT_CORE_PHILOX_H

#include <cstdint>

namespace pygpt::philox {
namespace {

struct Words {
    std::uint32_t word[4];
    constexpr bool operator==(const Words&) const = default;
};

enum class Site : std::uint32_t { dropout = 1, attention = 2, sample = 3 };

constexpr int rounds = 10;
// No arrays: device code may use the values of constants, not their addresses.
constexpr std::uint32_t multiplier0 = 0xD2511F53, multiplier1 = 0xCD9E8D57;
constexpr std::uint32_t key_step0 = 0x9E3779B9, key_step1 = 0xBB67AE85;  // golden ratio; sqrt(3) - 1

constexpr std::uint32_t low(std::uint64_t value) {
    return static_cast<std::uint32_t>(value);
}
constexpr std::uint32_t high(std::uint64_t value) {
    return static_cast<std::uint32_t>(value >> 32);
}

[[maybe_unused]] constexpr Words bits(std::uint64_t key, Words counter) {
    std::uint32_t k0 = low(key);
    std::uint32_t k1 = high(key);
    auto [c0, c1, c2, c3] = counter.word;
    for (int round = 0; round < rounds; ++round) {
        const std::uint64_t a = std::uint64_t{multiplier0} * c0;
        const std::uint64_t b = std::uint64_t{multiplier1} * c2;
        c0 = high(b) ^ c1 ^ k0;
        c1 = low(b);
        c2 = high(a) ^ c3 ^ k1;
        c3 = low(a);
        k0 += key_step0;
        k1 += key_step1;
    }
    return {{c0, c1, c2, c3}};
}

// The known answers published with the paper's code.
static_assert(bits(0, {{0, 0, 0, 0}}) == Words{{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
static_assert(bits(~0ull, {{~0u, ~0u, ~0u, ~0u}}) == Words{{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
static_assert(bits(0x299f31d0a4093822, {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}) ==
              Words{{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});

constexpr int blocks_per_group = 16;
constexpr int elements_per_group = 4 * blocks_per_group;

struct Place {
    std::uint64_t block;
    int word;
};

[[maybe_unused]] constexpr Place place(std::uint64_t element) {
    return {element / elements_per_group * blocks_per_group + element % blocks_per_group,
            static_cast<int>(element / blocks_per_group % 4)};
}

// An element is dropped if its word is below this. p is in [0, 1); p = 1 has no random part.
[[maybe_unused]] constexpr std::uint32_t drop_below(double p) {
    return low(static_cast<std::uint64_t>(p * 4294967296.0));
}

}  // namespace
}  // namespace pygpt::philox

#endif
