// What exists while a kernel runs: the grid, its resident clusters, their blocks and warps; and what each agent knows
// to have happened (vector clocks), from which races follow.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "counters.h"
#include "program.h"

namespace emulator {

struct Block;
struct Cluster;
struct Grid;

// ---- Time
// Agents are what acts on memory on its own: every warp; for every warp also the wgmma operations of the warpgroup it
// leads; and some engines for bulk copies, each of which is two: one that reads and loads, and one that writes what is
// stored, which is known later. Each counts its own time. A clock holds, for every agent, the latest time of which its
// owner knows that all before it has happened. For agents of other clusters it knows only what it learned through
// global memory.
struct Clock {
    std::vector<u32> own;                    // by agent of the own cluster
    std::map<u32, std::vector<u32>> others;  // by cluster, then agent
    u64 cycle = 0;                           // of the timing model (timing.h): by when all of that has happened

    void join(const Clock& from);
    // The same seen from another cluster: `own` of `from` belongs to cluster `from_cluster`.
    void join_from(const Clock& from, u32 from_cluster, u32 my_cluster);
    bool knows(u32 my_cluster, u32 cluster, u32 agent, u32 time) const;
};
// What passes through a barrier: what each warp knows, what it had fenced (see Warp), and what its relaxed reads have
// seen.
struct Knowledge {
    Clock clock, fenced, seen;
};
constexpr u32 kCopyEngines = 8;  // bulk copies take turns at these; who knows of one knows of its engine's earlier ones

// What was done by the launch before, where this one may begin before that has ended: an access of agent 0 of this
// cluster at time 1, which griddepcontrol.wait makes known.
constexpr u32 kLaunchBefore = ~0u;

// ---- Shadow memory: who touched a word last. One of these per 4 bytes.
struct Access {
    u32 cluster = 0, time = 0;  // time 0: no access
    u32 instruction = 0;        // index in the kernel's code
    u16 agent = 0;
    u8 bytes = 0;  // which of the four
    u8 strong : 1 = 0, asynchronous : 1 = 0, sums : 1 = 0;
};
// Reads since the word was last written, by every agent that read it and that a later write must know of.
template <int Few>
struct Reads {
    static constexpr std::size_t kMost = 64;  // those beyond are forgotten
    Access few[Few];
    std::unique_ptr<std::vector<Access>> more;

    template <class F>
    void for_each(F f) {
        for (Access& r : few) f(r);
        if (more)
            for (Access& r : *more) f(r);
    }
};
struct SharedCell {
    Access write;
    Reads<3> reads;
    u32 epoch = 0;                      // of the writing warp: how often its lanes had synchronised
    u8 lane = 0xff;                     // that wrote; 0xff if it does not matter
    u8 initialised = 0, in_flight = 0;  // bytes that something wrote; that an asynchronous copy is going to write
    u8 barrier : 1 = 0;                 // the bytes are (part of) an mbarrier
    u8 laid : 3 = 0;  // 1 + the swizzle (tensor_map.h) of the tensor copy that wrote them; 0 otherwise
};
struct GlobalCell {
    u32 launch = 0;  // the cell is blank unless it is of this launch
    Access write;
    Reads<2> reads;
};

// ---- Warps
constexpr u64 kNoTicket = ~0ull, kNoCycle = ~0ull;

// Lanes of a warp that are at the same place. A warp starts as one group, splits at divergent branches, and groups that
// meet again merge.
struct LaneGroup {
    LaneMask lanes = 0;
    u32 pc = 0;
    std::vector<u32> returns = {};  // call instructions to come back to, innermost last
    bool waiting = false;           // since this turn began
    u64 ticket = kNoTicket;         // phase of the barrier it has arrived at and waits for
    LaneMask before_mates = 0;      // its lanes when it came to an aligned barrier before the rest of its warp
    // Of the timing model: its next instruction issues no earlier; when the one that it waits at has issued.
    u64 not_before = 0, issued_at = kNoCycle;
};

// A cp.async that has not landed: it lands when it is waited for, no earlier.
struct PendingCopy {
    Block* block;
    u32 offset, bytes, valid;
    const u8* from;
    int lane;
    u32 group;
    u32 instruction;
};
// A bulk store: its engine reads the source and writes the destination at `time`, each as an agent of its own.
struct PendingStore {
    u32 engine, time, group;
};

struct Warp {
    Block* block = nullptr;
    u32 index = 0;  // in the block
    u32 agent = 0;  // in the cluster
    std::unique_ptr<u8[]> register_memory;
    u8* registers = nullptr;
    std::vector<LaneMask> predicates;
    LaneMask carry = 0;     // of add.cc
    std::vector<u8> frame;  // local memory, lane by lane
    u32 frame_bytes = 0;
    LaneMask live = 0;
    std::vector<LaneGroup> groups;
    u32 asked_registers = 0;  // of a thread, by setmaxnreg; 0 if it has not

    Clock clock;
    Clock fenced;  // what it knew at its last fence (or its mates' before a barrier): what a relaxed write shows
    Clock seen_by_relaxed;      // what relaxed reads have seen: known from the next fence on
    u32 proxy_fence_time = 0;   // own time of the last fence.proxy.async that covers shared memory
    Clock proxy_fenced;         // what it knew then
    Clock global_proxy_fenced;  // the same of global memory; its times are in Grid::proxy_fences
    u32 barrier_init_fence_time = 0;
    u32 epoch = 1;  // how often its lanes have synchronised

    std::vector<PendingCopy> copies;
    std::vector<PendingStore> stores;
    u32 copy_group = 1, store_group = 1;
    // wgmma.fence: by register, the period between fences in which an ordinary instruction last touched it. Everything
    // counts as touched at the start, so that the first wgmma needs a fence too.
    std::vector<u32> touched;
    u32 fence_period = 1;
    u32 cluster_phase[kLanes] = {};  // the cluster-barrier phase each lane has arrived at and not waited for, plus 1

    // During an instruction:
    LaneGroup* group = nullptr;
    int lane = -1;  // whose access is being checked; -1: the warp's
    const Instruction* current = nullptr;

    u32* reg32(u32 slot) { return reinterpret_cast<u32*>(registers + slot); }
    u64* reg64(u32 slot) { return reinterpret_cast<u64*>(registers + slot); }
    u64 reg(const Operand& o, int lane) { return o.wide ? reg64(o.slot)[lane] : reg32(o.slot)[lane]; }
    u64 address(const Operand& a, int lane) { return reg(a, lane) + static_cast<u64>(a.value); }
    LaneMask predicate(i32 index, bool negated) const {
        const LaneMask p = predicates[static_cast<u32>(index)];
        return negated ? ~p : p;
    }
    void set_predicate(i32 index, LaneMask lanes, LaneMask value) {
        if (index < 0) return;
        LaneMask& p = predicates[static_cast<u32>(index)];
        p = (p & ~lanes) | (value & lanes);
    }
    void tick();                // one more step of its own time
    void leave(Knowledge& at);  // for others to take
    void take(const Knowledge& at);
};

// ---- Blocks
struct Barrier {                    // bar.sync 0 to 15
    u32 arrived = 0, expected = 0;  // lanes, whole warps counting 32; expected 0: every warp of the block
    u64 phase = 0;
    Knowledge gathered, released;
    u32 votes = 0, voters = 0, votes_done = 0, voters_done = 0;  // barrier.red
};
struct MbarrierClocks {
    Clock gathered, released;
    u32 initialised_by = 0, initialised_at = 0;  // agent, time
};
// The wgmma operations of four warps. Each is one step of the group's agent; a warp's commit closes a group of them,
// and waiting for a group is knowing of the step it ended with.
struct Warpgroup {
    u32 arrived = 0, done = 0;  // bits by warp: has come to the instruction; may go on from it
    const Instruction* at = nullptr;
    u32 time = 0;                                // of its agent
    std::vector<u32> committed[4];               // by warp: the time at the end of each group
    u32 waited[4] = {};                          // by warp: the last time waited for
    std::vector<u32> written_by[4], read_by[4];  // by warp and register: time of the last wgmma that does
};

struct Block {
    Cluster* cluster = nullptr;
    u32 rank = 0;  // in the cluster
    u32 id[3] = {};
    std::vector<u8> shared;
    std::vector<SharedCell> cells;
    std::vector<Warp> warps;
    std::vector<Warpgroup> warpgroups;
    Barrier barriers[16];
    std::unordered_map<u32, MbarrierClocks> mbarriers;  // by shared offset
    Knowledge exited;                                   // what warps that are gone had done
};

// ---- Clusters and the grid
struct BulkCopy {  // a load on its way to shared memory
    u64 due;       // turn at which it lands
    Clock done;    // what whoever sees the mbarrier's phase knows to have happened
    std::function<void(const Clock& done)> land;
    u32 instruction, bytes;
    Block* block;
};
struct BulkStore {  // or a reduction, on its way to global memory
    u64 due;        // turn at which it lands, if nobody waits for it before
    const Warp* by;
    u32 group;
    std::function<void()> land;
};

struct Dim {
    u32 x = 1, y = 1, z = 1;
    u64 count() const { return static_cast<u64>(x) * y * z; }
};

struct Cluster {
    Grid* grid = nullptr;
    u32 number = 0;
    std::vector<std::unique_ptr<Block>> blocks;
    u32 agents = 0;
    std::vector<u32> engine_times;  // of the copy engines
    u32 next_engine = 0;
    std::vector<BulkCopy> copies;
    std::vector<BulkStore> stores;
    u64 turn = 0;
    // barrier.cluster
    u32 barrier_phase = 0;
    std::vector<LaneMask> barrier_arrived;  // by warp of the cluster
    Knowledge gathered, released;

    u32 warps_per_block() const { return static_cast<u32>(blocks[0]->warps.size()); }
    u32 warps() const { return static_cast<u32>(blocks.size()) * warps_per_block(); }
    u32 first_engine() const { return 2 * warps(); }
    static u32 writer_of(u32 engine) { return engine + kCopyEngines; }
    u32 wgmma_agent(const Warp& any_of_group) const { return warps() + any_of_group.agent - any_of_group.index % 4; }
    Warp* warp_of_agent(u32 agent) {
        if (agent >= warps()) return nullptr;
        return &blocks[agent / warps_per_block()]->warps[agent % warps_per_block()];
    }
};

struct Grid {
    Kernel* kernel = nullptr;
    Dim grid, block, cluster;
    const u8* params = nullptr;
    u32 dynamic_shared = 0;
    u32 launch = 0;                                   // number of this launch in the process
    const Kernel* before = nullptr;                   // of the launch before, if this one does not wait for its end
    bool waited = false;                              // some thread has, by griddepcontrol.wait
    std::map<std::pair<u32, u32>, u32> proxy_fences;  // of global memory, by cluster and warp: its time at the last one
    std::mt19937_64 random;
    std::vector<std::unique_ptr<Cluster>> resident;
    u64 executed = 0;  // warp instructions
    u64 effects = 0;   // what others could notice: memory changed, barriers passed, warps ended
    u64 executed_at_last_effect = 0;
    Counters counters;

    void effect() {
        ++effects;
        executed_at_last_effect = executed;
    }
};

inline Grid& grid_of(Warp& w) {
    return *w.block->cluster->grid;
}
inline Cluster& cluster_of(Warp& w) {
    return *w.block->cluster;
}
inline u32 cluster_number(Warp& w) {
    return w.block->cluster->number;
}

// Calls f(lane) for every lane of the mask.
template <class F>
inline void for_lanes(LaneMask lanes, F f) {
    if (lanes == kAllLanes) {
        for (int lane = 0; lane < kLanes; ++lane) f(lane);
    } else {
        for (int lane = 0; lane < kLanes; ++lane)
            if (lanes >> lane & 1) f(lane);
    }
}
inline int first_lane(LaneMask lanes) {
    return std::countr_zero(lanes);
}

// Ends the launch with a report: what, and where the warp is (report.cpp).
[[noreturn]] void fault(Warp& w, const std::string& what);
// "warp 3 of block (0,0,0) at kernel.cu:12"; what an Access says about who did it, for "both sides of a race".
std::string describe(Grid& grid, const Access& access);
std::string position(const Kernel& kernel, u32 instruction);

}  // namespace emulator
