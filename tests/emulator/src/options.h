// What a user can set: the device that is emulated, the seeds, and which checks run. Read from the environment once
// (PYGPT_EMULATOR_<NAME>, upper case), and changed by set_option().
#pragma once
#include <string>

#include "numbers.h"

namespace emulator {

struct Options {
    // The device.
    int arch = 90;            // 80, 86 or 90: which PTX is taken, the tensor cores' arithmetic, shared memory per block
    int multiprocessors = 4;  // blocks beyond what these hold wait for others to end

    // Seeds. The same seeds give the same results, to the bit.
    u64 seed = 1;        // order and length of the warps' turns, when asynchronous copies land
    u64 arith_seed = 0;  // 0: what is believed of wgmma and the approximations; else a variation that is as likely

    // Checks; each can be switched off alone.
    bool check_bounds = true;      // accesses outside of every registered range, or of what the block has
    bool check_alignment = true;   // misaligned accesses; dynamic shared memory is aligned as declared and no better
    bool check_races = true;       // two agents, one byte, at least one write, no order between them
    bool check_warp_races = true;  // the same between lanes of one warp
    bool check_global = true;      // the same in global memory, between warps and blocks
    bool check_order = true;       // floating-point sums of two agents in one place with no order: the bits vary
    bool check_init = true;        // reads of shared memory that nothing has written
    bool check_proxy = true;       // asynchronous reads of generic writes, and mbarriers, with no fence between
    bool check_async = true;       // use of data or registers that an asynchronous operation still works on
    bool check_masks = true;       // member masks, shuffles from absent lanes
    bool check_barriers = true;    // arrival counts, barrier initialisation, agreement of a warpgroup
    bool check_readonly = true;    // writes to memory registered as read-only

    // Limits, in warp instructions.
    u64 instruction_limit = 2'000'000'000;  // one launch
    u64 stall_limit = 4'000'000;            // since anything visible happened: nobody can end this wait

    // Tools.
    bool count = false;             // count what resources instructions use (counters.h)
    std::string counts_file;        // and append them there, a launch a line of JSON
    std::string synchronised_file;  // append there which synchronising instructions a launch ran: for mutation
    int drop_line = 0;              // mutation: the synchronising instruction on this PTX line does nothing
    std::string drop_kernel;        // if its kernel has this name
    bool timing = false;            // run in the order of a modelled time (timing.h), and count what warps wait for
    int timing_reuse = 1;           // how many multiprocessors use a byte of DRAM: 1 a stream, 100 all is in L2
    int timing_registers = 128;     // a thread: how many blocks a multiprocessor holds
    u64 timing_clusters = 0;        // run the first that many clusters only; 0: all
    bool fast_mma = false;          // fused multiply-adds instead of the tensor cores' arithmetic: faster, other bits
};

extern Options current_options;
inline Options& options() {
    return current_options;
}
// Launches read the environment again, since tests change it while they run: all of it (the CUDA runtime's), or what
// the tools set (Python's, whose devices have settings of their own).
void refresh_from_environment();
void refresh_tools();

// Sets an option by its name in the struct; false if there is none of that name.
bool set_option(const std::string& name, const std::string& value);

}  // namespace emulator
