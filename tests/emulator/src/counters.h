// Counts of what each instruction of a kernel used in one launch, by which bank conflicts, scattered accesses and
// redundant work are found. They are counts of PTX, not of machine code, and no times.
#pragma once
#include <string>
#include <vector>

#include "program.h"

namespace emulator {

// What a warp waited for before an instruction, in the timing model (timing.h).
enum class Stall : u8 {
    issue_slot,
    alu_result,
    special_result,
    shared_result,
    global_result,
    mma_result,
    alu_busy,
    special_busy,
    shared_busy,
    mma_busy,
    wgmma,
    wgmma_queue,
    mbarrier,
    barrier,
    cp_async,
    bulk_store,
    program_order,
    branch
};
constexpr int kStalls = 18;
const char* name_of(Stall stall);

struct InstructionCounts {
    u64 issued = 0;                               // warp instructions
    u64 lanes = 0;                                // lanes that took part
    u64 divergent = 0;                            // issued while the warp was split into groups
    u64 shared_wavefronts = 0, shared_ideal = 0;  // passes over the 32 banks: needed, and without conflicts
    u64 global_sectors = 0, global_ideal = 0;     // of 32 bytes: touched, and enough for the bytes asked for
    u64 tensor_macs = 0;
    u64 waits = 0;             // turns that ended here because a barrier, copy or other warp was not ready
    u64 stalls[kStalls] = {};  // cycles of the timing model, by what was waited for
};

struct Counters {
    bool on = false;
    std::vector<InstructionCounts> by_instruction;

    void start(const Kernel& kernel) { by_instruction.assign(kernel.code.size(), {}); }
    // Wavefronts of a warp's access of `bytes` per lane: 8- and 16-byte accesses go in 2 and 4 groups of lanes.
    void shared_access(u32 instruction, const u32* offsets, LaneMask lanes, u32 bytes);
    void global_access(u32 instruction, const u64* addresses, LaneMask lanes, u32 bytes);
};

// The synchronising instructions that ran: kernel, PTX line, how often, source line, text, separated by tabs, one a
// line.
std::string synchronised(const Kernel& kernel, const Counters& counters);
// One launch as a JSON object: totals by class, then a row for each CUDA source line (or PTX line where there is none).
// `timing`: what the timing model found, if it ran, else empty.
std::string to_json(const Kernel& kernel, const Counters& counters, u64 blocks, u32 threads, const std::string& timing);

}  // namespace emulator
