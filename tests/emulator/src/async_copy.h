// Bulk stores and reductions on their way to global memory, which land as turns pass.
#pragma once
#include <functional>

#include "state.h"

namespace emulator {

// Lands those that `chosen` says, in the order in which they are due.
void land_stores(Cluster& cluster, const std::function<bool(const BulkStore&)>& chosen);

}  // namespace emulator
