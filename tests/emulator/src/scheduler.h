// The parts of the scheduler that the timing model shares.
#pragma once
#include <memory>
#include <string>

#include "state.h"

namespace emulator {

std::unique_ptr<Cluster> start_cluster(Grid& grid, u32 number);
bool has_ended(const Cluster& cluster);

// The group to run of those that do not wait: deepest in calls, then the earliest instruction, so that groups meet
// again; or any, so that lanes that spin for others of their warp do not spin forever. Null if all wait.
LaneGroup* choose_group(Warp& w, bool any);
// Runs up to that many instructions of the warp's groups that do not wait; what came of the last one.
Flow run_warp(Warp& w, u32 turn_length, bool any_group);

std::string where_warps_are(Grid& grid);  // for a report: a line each

}  // namespace emulator
