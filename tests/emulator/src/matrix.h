#pragma once
#include "state.h"

namespace emulator {

// Faults if the instruction names a register that a wgmma in flight writes.
void check_registers_in_flight(Warp& w, const Instruction& in);

}  // namespace emulator
