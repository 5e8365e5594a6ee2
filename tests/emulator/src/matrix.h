#pragma once
#include "state.h"

namespace emulator {

// An ordinary instruction that touches registers which wgmma uses: faults if one in flight still works on them; notes
// that a wgmma.fence must come before the next.
void touch_wgmma_registers(Warp& w, const Instruction& in);
// Fills wgmma_touches and wgmma_writes of all instructions.
void find_wgmma_registers(Kernel& kernel);

}  // namespace emulator
