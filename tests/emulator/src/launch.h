// Running a kernel.
#pragma once
#include <string>
#include <vector>

#include "program.h"
#include "state.h"

namespace emulator {

// Runs the kernel to its end, or throws Fault. `params` holds the parameters at the kernel's offsets. `early`: it may
// begin before the launch before it has ended (programmatic dependent launch).
void launch(Kernel& kernel, Dim grid, Dim block, Dim cluster, const std::vector<u8>& params, u32 dynamic_shared,
            bool early = false);
// The next launch follows something else than a kernel, or the last kernel is gone: it cannot begin early.
void forget_last_launch();

// How many blocks of this shape one multiprocessor holds at a time, by threads and shared memory (registers are not
// known from PTX); 0 if it cannot hold one.
u32 blocks_per_multiprocessor(const Kernel& kernel, u32 threads, u32 dynamic_shared);
u32 shared_per_block_limit();  // bytes, opt-in

// Counts of every launch since the last call, as a JSON list (options().count).
std::string take_counts();

}  // namespace emulator
