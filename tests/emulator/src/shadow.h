// The race check: what it is told of accesses to shared and global memory.
#pragma once
#include "state.h"

namespace emulator {

// Who accesses: usually the warp itself at its present time; asynchronous operations act as agents of their own, with
// what the issuing warps knew.
struct Actor {
    u32 agent;
    u32 time;
    const Clock* knows;
    bool asynchronous;  // through the asynchronous proxy
    bool strong;        // atomic, volatile, relaxed, acquire, release: may meet its like without order
    bool sums = false;  // but adds floating-point numbers, so that the bits depend on the order
};
Actor actor(Warp& w, bool strong = false, bool sums = false);

void shared_read(Warp& w, const Actor& a, Block& block, u32 offset, u32 bytes);
void shared_write(Warp& w, const Actor& a, Block& block, u32 offset, u32 bytes);
void global_read(Warp& w, const Actor& a, u64 address, u32 bytes);
void global_write(Warp& w, const Actor& a, u64 address, u32 bytes);

// Marks bytes as going to be written by an asynchronous copy, or as landed.
void set_in_flight(Block& block, u32 offset, u32 bytes, bool in_flight);

// A memory range that was freed holds no history.
void forget_global(u64 address, u64 bytes);

}  // namespace emulator
