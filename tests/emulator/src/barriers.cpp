// bar and barrier, barrier.cluster, mbarrier, and the proxy fences.
// PTX ISA: 9.7.13.1 "bar, barrier", 9.7.13.3 "barrier.cluster", 9.7.13.15 "mbarrier",
// 9.7.13.4 "membar / fence", 9.7.9.25.2 "Async Proxy".
#include "barriers.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "instructions.h"
#include "linker.h"
#include "memory.h"
#include "options.h"
#include "shadow.h"

namespace emulator {

Flow execute_memory_fence(Warp&, const Instruction&, LaneMask);  // memory.cpp

namespace {

// A barrier opens: those who waited take what those who arrived, and those who have ended, had left.
void release(Knowledge& gathered, Knowledge& released) {
    released = std::exchange(gathered, {});
}
void join(Knowledge& into, const Knowledge& from) {
    into.clock.join(from.clock);
    into.fenced.join(from.fenced);
    into.seen.join(from.seen);
}

// ---- bar.sync, bar.arrive, bar.red: 16 barriers of the block.
enum class BarKind : u32 { sync, arrive, red };
constexpr u32 kAllOfBlock = 0;

u32 lanes_expected(const Block& block, const Barrier& bar) {
    if (bar.expected != kAllOfBlock) return bar.expected;
    u32 warps = 0;
    for (const Warp& w : block.warps) warps += w.live != 0;
    return warps * kLanes;
}

// A whole warp counts 32, however many lanes it has left; parts of a warp add up to 32.
u32 arrival_weight(const Warp& w, LaneMask lanes) {
    const u32 count = static_cast<u32>(std::popcount(lanes)),
              missing = kLanes - static_cast<u32>(std::popcount(w.live));
    return count + (lanes & (w.live & (0 - w.live)) ? missing : 0);
}

// dst/predicate_dst: bar.red's result; src[0]: id; src[1]: thread count if flags & 1; flags & 2: aligned;
// flags >> 2: popc, and, or.
Flow execute_bar(Warp& w, const Instruction& in, LaneMask lanes) {
    Block& block = *w.block;
    const BarKind kind = static_cast<BarKind>(in.variant);
    const u32 id = w.reg32(in.src[0])[first_lane(lanes)];
    if (id > 15) fault(w, "barrier " + std::to_string(id) + " of 16");
    Barrier& bar = block.barriers[id];
    LaneGroup& group = *w.group;
    if (group.ticket == kNoTicket) {  // arrives
        const bool aligned = in.flags & 2;
        if (aligned && lanes != w.live) {  // waits for the warp to converge: a deadlock if it never does
            group.before_mates = lanes;
            return Flow::wait;
        }
        if (std::exchange(group.before_mates, 0) == lanes && options().check_barriers)
            fault(w, "barrier " + std::to_string(id) +
                         " under divergence: the other lanes of the warp ended without coming to it");
        const u32 expected = in.flags & 1 ? w.reg32(in.src[1])[first_lane(lanes)] : kAllOfBlock;
        if (options().check_barriers) {
            if (expected % kLanes)
                fault(w, "the barrier's thread count, " + std::to_string(expected) + ", is no multiple of 32");
            if (bar.arrived && bar.expected != expected)
                fault(w, "warps disagree on the thread count of barrier " + std::to_string(id));
        }
        bar.expected = expected;
        if (kind == BarKind::red) {
            bar.votes +=
                static_cast<u32>(std::popcount(w.predicate(in.predicate_src, in.predicate_src_negated) & lanes));
            bar.voters += static_cast<u32>(std::popcount(lanes));
        }
        bar.arrived += arrival_weight(w, lanes);
        w.leave(bar.gathered);
        group.ticket = bar.phase;
        grid_of(w).effect();
    }
    if (bar.phase == group.ticket) {
        const u32 expected = lanes_expected(block, bar);
        if (bar.arrived > expected && options().check_barriers)
            fault(w, "more threads than the " + std::to_string(expected) + " expected arrived at barrier " +
                         std::to_string(id));
        if (bar.arrived >= expected) {
            bar.arrived = 0;
            ++bar.phase;
            bar.votes_done = bar.votes, bar.voters_done = bar.voters;
            bar.votes = bar.voters = 0;
            if (bar.expected == kAllOfBlock) join(bar.gathered, block.exited);
            release(bar.gathered, bar.released);
            grid_of(w).effect();
        }
    }
    if (kind == BarKind::arrive) {
        group.ticket = kNoTicket;
        return Flow::next;
    }
    if (bar.phase == group.ticket) return Flow::wait;
    group.ticket = kNoTicket;
    ++w.epoch;
    w.take(bar.released);
    if (kind == BarKind::red) {
        const u32 op = in.flags >> 2;
        if (op == 0) {
            u32* d = w.reg32(in.dst);
            for_lanes(lanes, [&](int l) { d[l] = bar.votes_done; });
        } else {
            const bool r = op == 1 ? bar.votes_done == bar.voters_done : bar.votes_done > 0;
            w.set_predicate(in.predicate_dst, lanes, r ? kAllLanes : 0);
        }
    }
    return Flow::next;
}

// ---- barrier.cluster
Flow execute_cluster_arrive(Warp& w, const Instruction& in, LaneMask lanes) {
    Cluster& cluster = cluster_of(w);
    if (in.flags && lanes != w.live) return Flow::wait;  // .aligned
    for_lanes(lanes, [&](int l) {
        if (w.cluster_phase[l] && options().check_barriers)
            fault(w, "arrives twice at the cluster's barrier without waiting");
        w.cluster_phase[l] = cluster.barrier_phase + 1;
    });
    cluster.barrier_arrived[w.agent] |= lanes;
    if (in.variant) {  // .relaxed: it shows what the warp had fenced, by fence.mbarrier_init for example
        cluster.gathered.clock.join(w.fenced);
        cluster.gathered.clock.cycle = std::max(cluster.gathered.clock.cycle, w.clock.cycle);
        w.tick();
    } else {
        w.leave(cluster.gathered);
    }
    grid_of(w).effect();
    settle_cluster_barrier(cluster);
    return Flow::next;
}

Flow execute_cluster_wait(Warp& w, const Instruction& in, LaneMask lanes) {
    Cluster& cluster = cluster_of(w);
    if (in.flags && lanes != w.live) return Flow::wait;
    u32 phase = 0;
    for_lanes(lanes, [&](int l) {
        if (!w.cluster_phase[l] && options().check_barriers)
            fault(w, "waits at the cluster's barrier without having arrived");
        phase = std::max(phase, w.cluster_phase[l]);
    });
    if (phase == cluster.barrier_phase + 1) return Flow::wait;
    for_lanes(lanes, [&](int l) { w.cluster_phase[l] = 0; });
    ++w.epoch;
    w.take(cluster.released);
    return Flow::next;
}

// ---- mbarrier: 64 bits of shared memory. Bits 0 to 19: arrivals still missing; 20 to 39: arrivals of a phase; 40 to
// 62: bytes still missing, biased; 63: the phase's parity. (The layout is the emulator's own: PTX calls it opaque.)
struct Mbarrier {
    u32 pending, expected;
    i64 bytes;
    u32 phase;
};
constexpr i64 kByteBias = 1 << 22;

Mbarrier load_mbarrier(const u8* p) {
    u64 x;
    std::memcpy(&x, p, 8);
    return {static_cast<u32>(x & 0xfffff), static_cast<u32>(x >> 20 & 0xfffff),
            static_cast<i64>(x >> 40 & 0x7fffff) - kByteBias, static_cast<u32>(x >> 63)};
}
void store_mbarrier(u8* p, const Mbarrier& b) {
    const u64 x = static_cast<u64>(b.pending) | static_cast<u64>(b.expected) << 20 |
                  static_cast<u64>((b.bytes + kByteBias) & 0x7fffff) << 40 | static_cast<u64>(b.phase) << 63;
    std::memcpy(p, &x, 8);
}

// Stores the barrier; if nothing is missing, its phase completes.
void settle(Block& block, u32 offset, Mbarrier b) {
    if (b.pending == 0 && b.bytes == 0) {
        b.phase ^= 1;
        b.pending = b.expected;
        MbarrierClocks& clocks = block.mbarriers[offset];
        clocks.released.join(clocks.gathered);
        block.cluster->grid->effect();
    }
    store_mbarrier(block.shared.data() + offset, b);
}

struct Arrival {
    u32 count = 1;
    i64 bytes = 0;             // that the phase waits for from now on
    bool drops = false;        // from the following phases too
    bool may_complete = true;  // .noComplete promises that others are still to come
};
void arrive(Warp& w, Block& block, u32 offset, const Arrival& a) {
    Mbarrier b = load_mbarrier(block.shared.data() + offset);
    const u32 count = a.count;
    if (count > b.pending && options().check_barriers)
        fault(w, "more arrivals at the mbarrier at shared byte " + std::to_string(offset) + " than the " +
                     std::to_string(b.expected) + " it was initialised for");
    b.pending -= std::min(count, b.pending);
    b.bytes += a.bytes;
    if (a.drops) b.expected -= count;
    if (!a.may_complete && b.pending == 0 && b.bytes == 0 && options().check_barriers)
        fault(w, "an arrival with .noComplete completes the phase of the mbarrier at shared byte " +
                     std::to_string(offset));
    block.mbarriers[offset].gathered.join(w.clock);
    settle(block, offset, b);
}

enum class MbarrierOp : u32 { init, inval, arrive, arrive_drop, expect_tx, complete_tx };

// variant: MbarrierOp; operands[count]: the address; src[0]: count or bytes if flags & 1; flags & 2: with expect_tx;
// flags & 4: the state is wanted in dst; flags & 8: .noComplete.
Flow execute_mbarrier(Warp& w, const Instruction& in, LaneMask lanes) {
    const MbarrierOp op = static_cast<MbarrierOp>(in.variant);
    for_lanes(lanes, [&](int lane) {
        w.lane = lane;
        const u64 address = w.address(in.operands[in.count], lane);
        const u32 number = in.flags & 1 ? w.reg32(in.src[0])[lane] : 1;
        Block* block;
        u32 offset;
        if (op == MbarrierOp::init) {
            u8* p = shared_pointer(w, address, 8, block, offset);
            if (offset % 8) fault(w, "an mbarrier must be aligned to 8 bytes");
            if (number == 0 || number > 0xfffff) fault(w, "an mbarrier for " + std::to_string(number) + " arrivals");
            shared_write(w, actor(w), *block, offset, 8);
            for (u32 word = offset / 4; word < offset / 4 + 2; ++word) {
                block->cells[word].barrier = 1;
                block->cells[word].write.time =
                    0;  // its users order themselves; what must come between is checked by proxy
            }
            store_mbarrier(p, {number, number, 0, 0});
            block->mbarriers[offset] = {};
            block->mbarriers[offset].initialised_by = w.agent;
            block->mbarriers[offset].initialised_at = w.clock.own[w.agent];
            return;
        }
        u8* p = mbarrier_at(w, address, block, offset);
        Mbarrier b = load_mbarrier(p);
        if (in.flags & 4) std::memcpy(w.reg64(in.dst) + lane, p, 8);  // the state is the barrier as it was
        switch (op) {
            case MbarrierOp::inval:
                for (u32 word = offset / 4; word < offset / 4 + 2; ++word) block->cells[word] = SharedCell{};
                break;
            case MbarrierOp::arrive:
            case MbarrierOp::arrive_drop: {
                Arrival a;
                if (in.flags & 2)
                    a.bytes = number;
                else
                    a.count = number;
                a.drops = op == MbarrierOp::arrive_drop;
                a.may_complete = !(in.flags & 8);
                arrive(w, *block, offset, a);
                break;
            }
            case MbarrierOp::expect_tx:
                b.bytes += number;
                store_mbarrier(p, b);
                break;
            default:
                b.bytes -= number;
                settle(*block, offset, b);
        }
    });
    w.lane = -1;
    w.tick();
    grid_of(w).effect();
    return Flow::next;
}

// mbarrier.pending_count: arrivals that were missing in a state.
Flow execute_pending_count(Warp& w, const Instruction& in, LaneMask lanes) {
    for_lanes(lanes, [&](int l) { w.reg32(in.dst)[l] = static_cast<u32>(w.reg64(in.src[0])[l] & 0xfffff); });
    return Flow::next;
}

// test_wait, try_wait. predicate_dst: has the phase completed? variant: 1 by parity; flags: 1 may wait a while.
Flow execute_mbarrier_wait(Warp& w, const Instruction& in, LaneMask lanes) {
    LaneMask done = 0;
    for_lanes(lanes, [&](int lane) {
        Block* block;
        u32 offset;
        const Mbarrier b = load_mbarrier(mbarrier_at(w, w.address(in.operands[1], lane), block, offset));
        const u32 parity = in.variant ? w.reg32(in.src[0])[lane] & 1 : static_cast<u32>(w.reg64(in.src[0])[lane] >> 63);
        if (b.phase == parity) return;
        done |= 1u << lane;
        w.clock.join(block->mbarriers[offset].released);
    });
    // try_wait suspends for a time that hardware chooses: here until the phase completes, or, now and then, not at all,
    // so that code which does not ask again is found out.
    if (done != lanes && in.flags && (options().timing || grid_of(w).random() % 4)) return Flow::wait;
    w.set_predicate(in.predicate_dst, lanes, done);
    return Flow::next;
}

}  // namespace

u8* mbarrier_at(Warp& w, u64 address, Block*& block, u32& offset) {
    u8* p = shared_pointer(w, address, 8, block, offset);
    if (offset % 8) fault(w, "an mbarrier must be aligned to 8 bytes");
    if (options().check_barriers && !block->cells[offset / 4].barrier)
        fault(w, "the mbarrier at shared byte " + std::to_string(offset) + " is not initialised");
    if (options().check_barriers) {
        const MbarrierClocks& clocks = block->mbarriers[offset];
        if (!w.clock.knows(0, 0, clocks.initialised_by, clocks.initialised_at))
            fault(w, "uses the mbarrier at shared byte " + std::to_string(offset) +
                         " with no synchronisation after its initialisation by another warp");
    }
    return p;
}

// Asynchronous copies may use an mbarrier only after its initialisation was fenced: by fence.mbarrier_init, a proxy
// fence, or a fence at cluster or wider scope of the warp that did it, or a proxy fence of the one that issues the
// copy.
void mbarrier_check_async_use(Warp& w, Block& block, u32 offset) {
    if (!options().check_proxy) return;
    const MbarrierClocks& clocks = block.mbarriers[offset];
    const Warp* by = block.cluster->warp_of_agent(clocks.initialised_by);
    if (by->barrier_init_fence_time > clocks.initialised_at) return;
    if (w.proxy_fenced.knows(0, 0, clocks.initialised_by, clocks.initialised_at)) return;
    fault(w, "an asynchronous copy uses the mbarrier at shared byte " + std::to_string(offset) +
                 " with no fence.mbarrier_init or fence.proxy.async after its initialisation");
}

void mbarrier_complete_bytes(Block& block, u32 offset, u32 bytes, const Clock& done) {
    Mbarrier b = load_mbarrier(block.shared.data() + offset);
    b.bytes -= bytes;
    block.mbarriers[offset].gathered.join(done);
    settle(block, offset, b);
}

void mbarrier_arrive_for(Warp& w, Block& block, u32 offset, bool count_as_extra) {
    if (count_as_extra) {
        Mbarrier b = load_mbarrier(block.shared.data() + offset);
        ++b.pending;
        store_mbarrier(block.shared.data() + offset, b);
    }
    arrive(w, block, offset, {});
}

void settle_cluster_barrier(Cluster& cluster) {
    bool any = false;
    for (auto& block : cluster.blocks)
        for (Warp& w : block->warps) {
            if ((cluster.barrier_arrived[w.agent] & w.live) != w.live) return;
            any |= cluster.barrier_arrived[w.agent] != 0;
        }
    if (!any) return;
    std::fill(cluster.barrier_arrived.begin(), cluster.barrier_arrived.end(), 0);
    ++cluster.barrier_phase;
    for (auto& block : cluster.blocks) join(cluster.gathered, block->exited);
    release(cluster.gathered, cluster.released);
    cluster.grid->effect();
}

std::string describe_wait(Warp& w, const LaneGroup& group) {
    const Instruction& in = grid_of(w).kernel->code[group.pc];
    const int lane = first_lane(group.lanes);
    if (in.execute == execute_bar) {
        const u32 id = w.reg32(in.src[0])[lane];
        if (group.ticket == kNoTicket)
            return "barrier " + std::to_string(id) + " under divergence: not all lanes of the warp came to it";
        const Barrier& bar = w.block->barriers[id & 15];
        return "barrier " + std::to_string(id) + ": " + std::to_string(bar.arrived) + " of " +
               std::to_string(lanes_expected(*w.block, bar)) + " threads have arrived";
    }
    if (in.execute == execute_mbarrier_wait) {
        Block* block;
        u32 offset;
        const Mbarrier b = load_mbarrier(shared_pointer(w, w.address(in.operands[1], lane), 8, block, offset));
        return "the mbarrier at shared byte " + std::to_string(offset) + ", in phase " + std::to_string(b.phase) +
               ": " + std::to_string(b.pending) + " of " + std::to_string(b.expected) + " arrivals and " +
               std::to_string(b.bytes) + " bytes are missing";
    }
    if (in.execute == execute_cluster_wait || in.execute == execute_cluster_arrive) return "the cluster's barrier";
    if (in.opcode == "wgmma" && group.lanes == kAllLanes)
        return "the warps of its warpgroup: " +
               std::to_string(std::popcount(w.block->warpgroups[w.index / 4].arrived)) + " of 4 have come to the wgmma";
    return group.waiting ? "other lanes or warps" : "nothing: it spins";
}

void bind_bar(Binder& b) {  // bar, barrier
    Instruction& in = b.in;
    const bool short_form = in.opcode == "bar";
    if (b.has("cluster")) {
        const bool arrives = b.has("arrive");
        b.ignore({"wait", "acquire", "release"});
        in.variant = b.has("relaxed");
        in.flags = b.has("aligned");
        return b.run(arrives ? execute_cluster_arrive : execute_cluster_wait, Class::barrier);
    }
    if (b.has("warp")) return bind_warp_barrier(b);
    b.ignore({"cta"});
    const std::string kind = b.one_of({"sync", "arrive", "red"});
    in.variant = static_cast<u32>(kind == "arrive" ? BarKind::arrive : kind == "red" ? BarKind::red : BarKind::sync);
    in.flags = short_form || b.has("aligned") ? 2 : 0;
    std::size_t id = 0;
    if (kind == "red") {
        const std::string op = b.one_of({"popc", "and", "or"});
        in.flags |= (op == "popc" ? 0u : op == "and" ? 1u : 2u) << 2;
        b.last_type();
        if (op == "popc")
            in.dst = b.destination(0, false);
        else
            in.predicate_dst = b.predicate_destination(0);
        b.predicate_source(b.operands() - 1);
        id = 1;
    }
    in.src[0] = b.source(id, false);
    if (b.operands() > id + 1 && b.operand(id + 1).kind != Operand::Kind::predicate) {
        in.src[1] = b.source(id + 1, false);
        in.flags |= 1;
    }
    b.run(execute_bar, Class::barrier);
}

void bind_mbarrier(Binder& b) {
    Instruction& in = b.in;
    b.ignore({"shared", "shared::cta", "shared::cluster", "b64", "release", "acquire", "relaxed", "cta", "cluster"});
    if (b.has("pending_count")) {
        in.dst = b.destination(0, false);
        in.src[0] = b.source(1, true);
        return b.run(execute_pending_count, Class::barrier);
    }
    in.flags = b.has("noComplete") ? 8 : 0;
    const bool try_wait = b.has("try_wait");
    if (try_wait || b.has("test_wait")) {
        in.predicate_dst = b.predicate_destination(0);
        b.address(1, Space::shared);
        in.variant = b.has("parity");
        in.flags = try_wait;
        in.src[0] = b.source(2, !in.variant);
        return b.run(execute_mbarrier_wait, Class::barrier);
    }
    const bool expects = b.has("expect_tx");
    const MbarrierOp op = b.has("init")          ? MbarrierOp::init
                          : b.has("inval")       ? MbarrierOp::inval
                          : b.has("arrive_drop") ? MbarrierOp::arrive_drop
                          : b.has("arrive")      ? MbarrierOp::arrive
                          : b.has("complete_tx") ? MbarrierOp::complete_tx
                          : expects              ? MbarrierOp::expect_tx
                                                 : (b.unsupported("which operation?"), MbarrierOp::init);
    in.variant = static_cast<u32>(op);
    in.count = b.operand(0).kind == Operand::Kind::address ? 0 : 1;
    if (in.count == 1 && b.operand(0).kind != Operand::Kind::sink) {
        in.dst = b.destination(0, true);
        in.flags |= 4;
    }
    b.address(in.count, Space::shared);
    if (b.operands() > in.count + 1) {
        in.src[0] = b.source(in.count + 1, false);
        in.flags |= 1;
    }
    if ((op == MbarrierOp::arrive || op == MbarrierOp::arrive_drop) && expects) in.flags |= 2;
    b.run(execute_mbarrier, Class::barrier);
}

namespace {

// flags: 1 covers shared memory, 2 global memory.
Flow execute_proxy_fence(Warp& w, const Instruction& in, LaneMask) {
    w.tick();
    const u32 now = w.clock.own[w.agent];
    if (in.flags & 1) {
        w.proxy_fence_time = w.barrier_init_fence_time = now;
        w.proxy_fenced = w.clock;
    }
    if (in.flags & 2) {
        grid_of(w).proxy_fences[{cluster_number(w), w.agent}] = now;
        w.global_proxy_fenced = w.clock;
    }
    return Flow::next;
}

Flow execute_fence(Warp& w, const Instruction& in, LaneMask lanes) {
    execute_memory_fence(w, in, lanes);
    if (in.variant) w.barrier_init_fence_time = w.clock.own[w.agent];  // cluster scope or wider
    return Flow::next;
}

}  // namespace

void bind_fence(Binder& b) {  // fence, membar
    if (b.has("proxy")) {
        const bool async = b.has("async") | b.has_prefix("async::");
        const bool other = b.has("alias") | b.has_prefix("tensormap");
        const bool global = b.has("global");
        const bool shared = b.has_prefix("shared");
        b.ignore({"release", "acquire", "cta", "cluster", "gpu", "sys"});
        if (other) b.unsupported("this proxy");
        if (!async) b.unsupported("which proxy?");
        b.in.flags = (shared || !global ? 1 : 0) | (global || !shared ? 2 : 0);
        return b.run(execute_proxy_fence, Class::barrier);
    }
    const bool init = b.has("mbarrier_init");
    const bool block_only = b.has("cta");
    b.ignore({"acq_rel", "sc", "acquire", "release", "cluster", "gpu", "sys", "gl", "sync_restrict::shared::cta",
              "sync_restrict::shared::cluster"});
    b.in.variant = init || !block_only;
    b.run(execute_fence, Class::barrier);
}

}  // namespace emulator
