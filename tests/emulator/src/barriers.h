// mbarriers, as asynchronous copies use them; and what a group of lanes waits for, in words.
#pragma once
#include <string>

#include "state.h"

namespace emulator {

// The mbarrier at a shared address, after checking that it is one.
u8* mbarrier_at(Warp& w, u64 address, Block*& block, u32& offset);
void mbarrier_check_async_use(Warp& w, Block& block, u32 offset);  // was its initialisation fenced?
void mbarrier_complete_bytes(Block& block, u32 offset, u32 bytes, const Clock& done);
void mbarrier_arrive_for(Warp& w, Block& block, u32 offset, bool count_as_extra);  // cp.async.mbarrier.arrive

// "at the mbarrier at shared byte 64: 1 of 2 arrivals and 2048 bytes are missing". For reports of deadlocks.
std::string describe_wait(Warp& w, const LaneGroup& group);

// A lane group that left the kernel, or a warp that ended, may complete a barrier others wait at.
void settle_cluster_barrier(Cluster& cluster);

}  // namespace emulator
