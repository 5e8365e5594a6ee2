// Branches, ends and calls.
#pragma once
#include "state.h"

namespace emulator {

Flow execute_nothing(Warp&, const Instruction&, LaneMask);
Flow execute_set_predicate(Warp&, const Instruction&, LaneMask);  // predicate_dst becomes true
Flow execute_exit(Warp&, const Instruction&, LaneMask);
void copy_results(Warp&, const Instruction& call, LaneMask lanes);  // what a function left for the code that called it
bool is_builtin_function(const std::string& name);                  // printf and assert, which the emulator itself does

}  // namespace emulator
