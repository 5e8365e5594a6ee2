// Vector clocks: see state.h.
#include <algorithm>

#include "state.h"

namespace emulator {
namespace {

void join_times(std::vector<u32>& into, const std::vector<u32>& from) {
    if (into.size() < from.size()) into.resize(from.size());
    for (std::size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

}  // namespace

void Clock::join(const Clock& from) {
    join_times(own, from.own);
    cycle = std::max(cycle, from.cycle);
    for (const auto& [cluster, times] : from.others) join_times(others[cluster], times);
}

void Clock::join_from(const Clock& from, u32 from_cluster, u32 my_cluster) {
    if (from_cluster == my_cluster) return join(from);
    if (!from.own.empty()) join_times(others[from_cluster], from.own);
    cycle = std::max(cycle, from.cycle);
    for (const auto& [cluster, times] : from.others) join_times(cluster == my_cluster ? own : others[cluster], times);
}

bool Clock::knows(u32 my_cluster, u32 cluster, u32 agent, u32 time) const {
    const std::vector<u32>* times = &own;
    if (cluster != my_cluster) {
        const auto found = others.find(cluster);
        if (found == others.end()) return false;
        times = &found->second;
    }
    return agent < times->size() && (*times)[agent] >= time;
}

void Warp::tick() {
    ++clock.own[agent];
}

void Warp::leave(Knowledge& at) {
    at.clock.join(clock);
    at.fenced.join(fenced);
    at.seen.join(seen_by_relaxed);
    tick();
}

void Warp::take(const Knowledge& at) {
    clock.join(at.clock);
    fenced.join(at.fenced);
    seen_by_relaxed.join(at.seen);
}

}  // namespace emulator
