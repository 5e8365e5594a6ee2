// Which elements dropout keeps: 64 decisions at a time, as core/philox.h lays them out.
#ifndef PYGPT_CPU_KERNELS_KEEP_H
#define PYGPT_CPU_KERNELS_KEEP_H

#include "core/philox.h"
#include "cpu/kernels/simd.h"

namespace pygpt::cpu {
namespace {

// keep[e] = scale if element 64·n + e of a row is kept, else 0. counter.word[0] is the group's first block, 16·n.
// Blocks are independent: the compiler turns the loop over them into vectors.
template <class Number>
void keep_group(std::uint64_t key, philox::Words counter, std::uint32_t drop_below, Number scale, Number* keep) {
    const std::uint32_t first_block = counter.word[0];
    constexpr int blocks = philox::blocks_per_group;
    std::uint32_t word[4][blocks];
    for (int block = 0; block < blocks; ++block) {
        counter.word[0] = first_block + static_cast<std::uint32_t>(block);
        const philox::Words bits = philox::bits(key, counter);
        for (int i = 0; i < 4; ++i) word[i][block] = bits.word[i];
    }
    for (int i = 0; i < 4; ++i) {
        for (int block = 0; block < blocks; ++block) {
            keep[i * blocks + block] = word[i][block] < drop_below ? Number(0) : scale;
        }
    }
}

}  // namespace
}  // namespace pygpt::cpu

#endif
