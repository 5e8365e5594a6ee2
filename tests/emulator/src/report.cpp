// What a user reads when a kernel did something wrong: kernel, block, warp, source line, PTX line, and who else took
// part.
#include "state.h"

namespace emulator {
namespace {

std::string block_name(const u32 (&id)[3]) {
    return "block (" + std::to_string(id[0]) + "," + std::to_string(id[1]) + "," + std::to_string(id[2]) + ")";
}

}  // namespace

std::string position(const Kernel& kernel, u32 instruction) {
    if (instruction >= kernel.code.size()) return "an unknown place";
    const Instruction& in = kernel.code[instruction];
    const std::string source = describe(*kernel.module, in.source);
    return (source.empty() ? "" : source + " ") + "(PTX line " + std::to_string(in.line) + ": " +
           line_of(*kernel.module, in.line) + ")";
}

std::string describe(Grid& grid, const Access& access) {
    if (access.cluster == kLaunchBefore)
        return "the launch before, " + demangled(grid.before->name) + ", at " +
               position(*grid.before, access.instruction) + ", for which griddepcontrol.wait has not waited";
    // Every cluster has as many blocks and warps as any other.
    const Cluster& any = *grid.resident.front();
    const u32 warps = any.warps(), per_block = any.warps_per_block();
    std::string who;
    if (access.agent >= 2 * warps)
        who = "a bulk copy";
    else if (access.agent >= warps)
        who = "wgmma of the group of warp " + std::to_string(access.agent % warps % per_block);
    else
        who = "warp " + std::to_string(access.agent % per_block);
    if (access.agent < 2 * warps) {
        const u32 rank = access.agent % warps / per_block;
        const Dim d = grid.cluster;
        const u32 across_x = grid.grid.x / d.x, across_y = grid.grid.y / d.y;
        const u32 id[3] = {access.cluster % across_x * d.x + rank % d.x,
                           access.cluster / across_x % across_y * d.y + rank / d.x % d.y,
                           access.cluster / across_x / across_y * d.z + rank / d.x / d.y};
        who += " of " + block_name(id);
    }
    return who + " at " + position(*grid.kernel, access.instruction);
}

void fault(Warp& w, const std::string& what) {
    Grid& grid = grid_of(w);
    const u32 instruction = w.current ? w.current->index : static_cast<u32>(grid.kernel->code.size());
    std::string text =
        demangled(grid.kernel->name) + ": " + block_name(w.block->id) + " warp " + std::to_string(w.index);
    if (w.lane >= 0) text += " lane " + std::to_string(w.lane);
    text += ": " + what + "\n    at " + position(*grid.kernel, instruction);
    throw Fault(text);
}

}  // namespace emulator
