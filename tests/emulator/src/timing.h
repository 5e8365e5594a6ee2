// A model of time: ranks designs that differ clearly, without a GPU. Never a measurement. README.md says what it is
// worth.
#pragma once
#include <string>

#include "state.h"

namespace emulator {

// Runs the grid's clusters (or the first options().timing_clusters) on the multiprocessors of one cluster, the warp
// whose modelled time is earliest first; each is held at a time `by_shared_memory` or fewer. What it found, as JSON;
// what warps waited for is in the grid's counters.
std::string run_timed(Grid& grid, u32 clusters, u32 by_shared_memory);

}  // namespace emulator
