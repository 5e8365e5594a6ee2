// Time: whose turn it is. Resident clusters share one thread; their warps take turns of random length in random order,
// all from one seed, so that a seed names an interleaving. Blocks start in the order of the grid; as many are resident
// as the device holds, but a further one starts only when the others wait, so that few are half done at a time.
#include "scheduler.h"

#include <algorithm>
#include <cfenv>
#include <cstring>
#include <fstream>
#include <optional>

#include "async_copy.h"
#include "barriers.h"
#include "control.h"
#include "launch.h"
#include "linker.h"
#include "matrix.h"
#include "options.h"
#include "timing.h"

namespace emulator {
namespace {

// ---- Starting
u64 special_value(Special special, const Warp& w, u32 lane) {
    const Block& b = *w.block;
    const Grid& g = *b.cluster->grid;
    const Kernel& k = *g.kernel;
    const Dim B = g.block, C = g.cluster, G = g.grid;
    const u32 thread = w.index * kLanes + lane;
    const u32 rank = b.rank;
    switch (special) {
        case Special::tid_x:
            return thread % B.x;
        case Special::tid_y:
            return thread / B.x % B.y;
        case Special::tid_z:
            return thread / B.x / B.y;
        case Special::ntid_x:
            return B.x;
        case Special::ntid_y:
            return B.y;
        case Special::ntid_z:
            return B.z;
        case Special::ctaid_x:
            return b.id[0];
        case Special::ctaid_y:
            return b.id[1];
        case Special::ctaid_z:
            return b.id[2];
        case Special::nctaid_x:
            return G.x;
        case Special::nctaid_y:
            return G.y;
        case Special::nctaid_z:
            return G.z;
        case Special::laneid:
            return lane;
        case Special::warpid:
            return w.index;
        case Special::nwarpid:
            return b.warps.size();
        case Special::smid:
            return b.cluster->number % static_cast<u32>(options().multiprocessors);
        case Special::nsmid:
            return static_cast<u32>(options().multiprocessors);
        case Special::gridid:
            return g.launch;
        case Special::lanemask_eq:
            return 1u << lane;
        case Special::lanemask_lt:
            return (1u << lane) - 1;
        case Special::lanemask_le:
            return (2ull << lane) - 1;
        case Special::lanemask_gt:
            return ~((2ull << lane) - 1) & 0xffffffffu;
        case Special::lanemask_ge:
            return ~((1u << lane) - 1);
        case Special::dynamic_smem_size:
            return g.dynamic_shared;
        case Special::total_smem_size:
            return g.dynamic_shared + k.shared_static;
        case Special::cluster_ctarank:
            return rank;
        case Special::cluster_nctarank:
            return C.count();
        case Special::cluster_ctaid_x:
            return rank % C.x;
        case Special::cluster_ctaid_y:
            return rank / C.x % C.y;
        case Special::cluster_ctaid_z:
            return rank / C.x / C.y;
        case Special::cluster_nctaid_x:
            return C.x;
        case Special::cluster_nctaid_y:
            return C.y;
        case Special::cluster_nctaid_z:
            return C.z;
        case Special::clusterid_x:
            return b.id[0] / C.x;
        case Special::clusterid_y:
            return b.id[1] / C.y;
        case Special::clusterid_z:
            return b.id[2] / C.z;
        case Special::nclusterid_x:
            return G.x / C.x;
        case Special::nclusterid_y:
            return G.y / C.y;
        case Special::nclusterid_z:
            return G.z / C.z;
        case Special::is_explicit_cluster:
            return C.count() > 1;
        case Special::clock:
        case Special::clock64:
            return 0;  // read by instructions of their own
    }
    return 0;
}

void start_warp(Warp& w, Block& b, u32 index) {
    const Cluster& cluster = *b.cluster;
    const Kernel& k = *cluster.grid->kernel;
    w.block = &b;
    w.index = index;
    w.agent = b.rank * cluster.warps_per_block() + index;
    w.register_memory.reset(new u8[k.register_bytes + 64]);
    w.registers = reinterpret_cast<u8*>((reinterpret_cast<u64>(w.register_memory.get()) + 63) & ~63ull);
    std::memcpy(w.registers, k.initial_registers.data(), k.register_bytes);
    w.predicates.assign(k.predicates + 1, 0);
    w.frame_bytes = (k.frame_bytes + 15) & ~15u;
    w.frame.assign(static_cast<std::size_t>(w.frame_bytes) * kLanes, 0xff);
    const u64 threads = cluster.grid->block.count() - std::min<u64>(cluster.grid->block.count(), index * kLanes);
    w.live = threads >= kLanes ? kAllLanes : (1u << threads) - 1;
    w.groups = {LaneGroup{w.live, 0}};
    w.clock.own.assign(cluster.agents, 0);
    w.clock.own[w.agent] = 1;
    for (const auto& [slot, special] : k.specials)
        for (u32 lane = 0; lane < kLanes; ++lane) {
            const u64 value = special_value(special, w, lane);
            if (is_wide(special))
                w.reg64(slot)[lane] = value;
            else
                w.reg32(slot)[lane] = static_cast<u32>(value);
        }
}

}  // namespace

std::unique_ptr<Cluster> start_cluster(Grid& g, u32 number) {
    auto cluster = std::make_unique<Cluster>();
    cluster->grid = &g;
    cluster->number = number;
    const Kernel& k = *g.kernel;
    const u32 blocks = static_cast<u32>(g.cluster.count());
    const u32 warps = static_cast<u32>((g.block.count() + kLanes - 1) / kLanes);
    const u32 across_x = g.grid.x / g.cluster.x, across_y = g.grid.y / g.cluster.y;
    cluster->agents = 2 * blocks * warps + 2 * kCopyEngines;
    cluster->engine_times.assign(kCopyEngines, 0);
    cluster->barrier_arrived.assign(blocks * warps, 0);
    const u32 shared =
        (g.dynamic_shared || k.shared_dynamic_align > 1 ? k.shared_dynamic_base : k.shared_static) + g.dynamic_shared;
    for (u32 r = 0; r < blocks; ++r) {
        auto b = std::make_unique<Block>();
        b->cluster = cluster.get();
        b->rank = r;
        b->id[0] = number % across_x * g.cluster.x + r % g.cluster.x;
        b->id[1] = number / across_x % across_y * g.cluster.y + r / g.cluster.x % g.cluster.y;
        b->id[2] = number / across_x / across_y * g.cluster.z + r / g.cluster.x / g.cluster.y;
        b->shared.assign(shared, 0xff);
        b->cells.resize(shared / 4 + 1);
        b->warps.resize(warps);
        b->warpgroups.resize((warps + 3) / 4);
        cluster->blocks.push_back(std::move(b));
    }
    for (auto& b : cluster->blocks)
        for (u32 i = 0; i < warps; ++i) start_warp(b->warps[i], *b, i);
    return cluster;
}

bool has_ended(const Cluster& cluster) {
    for (const auto& b : cluster.blocks)
        for (const Warp& w : b->warps)
            if (!w.groups.empty()) return false;
    return true;
}

// ---- One warp's turn
namespace {

void end_lanes(Warp& w, LaneMask lanes) {
    w.live &= ~lanes;
    Block& b = *w.block;
    w.leave(b.exited);
    settle_cluster_barrier(cluster_of(w));
    grid_of(w).effect();
    if (w.live || !options().check_async) return;
    w.lane = -1;
    for (const PendingStore& s : w.stores)
        if (w.clock.own[s.engine] < s.time)
            fault(w, "ends while a bulk store may still read its shared memory: wait_group.read is missing");
}

// Lanes of the group that go on while the others of it do something else.
LaneGroup ahead_of(const LaneGroup& g, LaneMask lanes) {
    LaneGroup ahead{lanes, g.pc + 1, g.returns};
    ahead.not_before = g.not_before;
    return ahead;
}

bool merge_groups(Warp& w) {
    bool merged = false;
    for (std::size_t a = 0; a < w.groups.size(); ++a)
        for (std::size_t b = a + 1; b < w.groups.size();) {
            LaneGroup &x = w.groups[a], &y = w.groups[b];
            if (x.pc == y.pc && x.ticket == y.ticket && x.returns == y.returns) {
                x.lanes |= y.lanes;
                x.waiting = false;
                x.not_before = std::max(x.not_before, y.not_before);
                w.groups.erase(w.groups.begin() + static_cast<std::ptrdiff_t>(b));
                merged = true;
            } else {
                ++b;
            }
        }
    return merged;
}

}  // namespace

LaneGroup* choose_group(Warp& w, bool any) {
    LaneGroup* best = nullptr;
    u32 ready = 0;
    for (LaneGroup& g : w.groups) {
        if (g.waiting) continue;
        ++ready;
        if (any && grid_of(w).random() % ready == 0) best = &g;
        if (!any && (!best || g.returns.size() > best->returns.size() ||
                     (g.returns.size() == best->returns.size() && g.pc < best->pc)))
            best = &g;
    }
    return best;
}

Flow run_warp(Warp& w, u32 turn_length, bool any_group) {
    Grid& grid = grid_of(w);
    const Kernel& kernel = *grid.kernel;
    const Instruction* code = kernel.code.data();
    Flow flow = Flow::wait;
    while (turn_length > 0) {
        LaneGroup* g = choose_group(w, any_group);
        any_group = any_group && grid.random() % 16 != 0;
        if (!g) return flow;
        const bool alone = w.groups.size() == 1;
        for (;;) {
            const Instruction& in = code[g->pc];
            const LaneMask lanes = in.guard < 0 ? g->lanes : g->lanes & w.predicate(in.guard, in.guard_negated);
            flow = Flow::next;
            ++grid.executed;
            --turn_length;
            if (lanes) {
                w.current = &in;
                w.group = g;
                if (!in.wgmma_touches.empty() && options().check_async) touch_wgmma_registers(w, in);
                flow = in.execute(w, in, lanes);
                if (grid.counters.on) {
                    InstructionCounts& c = grid.counters.by_instruction[g->pc];
                    c.waits += flow == Flow::wait;
                    if (flow != Flow::wait) {
                        ++c.issued;
                        c.lanes += static_cast<u32>(std::popcount(lanes));
                        c.divergent += !alone;
                    }
                }
            }
            if (flow == Flow::next) {
                ++g->pc;
                if (alone && turn_length > 0) continue;
                break;
            }
            const LaneMask others = g->lanes & ~lanes;  // whose guard was false
            if (flow == Flow::wait) {
                g->waiting = true;
                if (others) {  // they go on
                    g->lanes = lanes;
                    LaneGroup ahead = ahead_of(*g, others);
                    w.groups.push_back(std::move(ahead));
                }
                break;
            }
            if (others) {
                LaneGroup ahead = ahead_of(*g, others);
                g->lanes = lanes;
                const std::ptrdiff_t at = g - w.groups.data();
                w.groups.push_back(std::move(ahead));
                g = &w.groups[static_cast<std::size_t>(at)];
            }
            if (flow == Flow::jump) {
                g->pc = in.target;
            } else if (flow == Flow::call) {
                g->returns.push_back(g->pc);
                g->pc = in.target;
            } else if (flow == Flow::ret) {
                const u32 call = g->returns.back();
                g->returns.pop_back();
                copy_results(w, code[call], lanes);
                g->pc = call + 1;
            } else {
                const std::ptrdiff_t at = g - w.groups.data();
                end_lanes(w, lanes);
                w.groups.erase(w.groups.begin() + at);
                if (w.groups.empty()) return flow;
                break;
            }
            if (!others && alone && turn_length > 0) continue;
            break;
        }
        if (w.groups.size() > 1) merge_groups(w);
    }
    return flow;
}

// ---- The grid
std::string where_warps_are(Grid& grid) {
    std::string text;
    int shown = 0;
    for (auto& c : grid.resident)
        for (auto& b : c->blocks)
            for (Warp& w : b->warps)
                for (LaneGroup& g : w.groups) {
                    if (++shown > 40) return text + "\n    and more";
                    char lanes[16];
                    std::snprintf(lanes, sizeof lanes, "%08x", g.lanes);
                    text += "\n    block (" + std::to_string(b->id[0]) + "," + std::to_string(b->id[1]) + "," +
                            std::to_string(b->id[2]) + ") warp " + std::to_string(w.index) + " lanes " + lanes +
                            " waits for " + describe_wait(w, g) + ", at " + position(*grid.kernel, g.pc);
                }
    return text;
}

namespace {

class Scheduler {
  public:
    Scheduler(Grid& grid, u32 clusters, u32 most_resident)
        : grid_(grid), clusters_(clusters), most_resident_(most_resident) {}

    void run() {
        start_next();
        while (!grid_.resident.empty()) {
            const u64 effects = grid_.effects;
            for (std::size_t i = 0; i < grid_.resident.size(); ++i) take_turns(*grid_.resident[i]);
            end_clusters();
            if (grid_.resident.size() < 2) start_next();
            if (grid_.effects != effects)
                idle_rounds_ = 0;
            else
                nothing_happened();
            if (grid_.executed > options().instruction_limit)
                throw Fault(name() + ": executed more than " + std::to_string(options().instruction_limit) +
                            " warp instructions (instruction_limit)" + where_warps_are(grid_));
        }
    }

  private:
    std::string name() const { return demangled(grid_.kernel->name); }

    void start_next() {
        if (next_ < clusters_ && grid_.resident.size() < most_resident_) {
            grid_.resident.push_back(start_cluster(grid_, next_++));
            grid_.effect();
        }
    }

    void take_turns(Cluster& cluster) {
        std::vector<Warp*> order;
        for (auto& b : cluster.blocks)
            for (Warp& w : b->warps)
                if (!w.groups.empty()) order.push_back(&w);
        for (std::size_t n = order.size(); n > 1; --n) std::swap(order[n - 1], order[grid_.random() % n]);
        for (Warp* w : order) {
            const u32 length = 16 + static_cast<u32>(grid_.random() % 200);
            for (LaneGroup& g : w->groups) g.waiting = false;
            run_warp(*w, length, w->groups.size() > 1 && grid_.random() % 4 == 0);
            ++cluster.turn;
        }
        land_copies(cluster);
        if (!cluster.stores.empty()) land_stores(cluster, [&](const BulkStore& s) { return s.due <= cluster.turn; });
    }

    static void land_copies(Cluster& cluster) {
        for (std::size_t i = 0; i < cluster.copies.size();) {
            if (cluster.copies[i].due > cluster.turn) {
                ++i;
                continue;
            }
            const BulkCopy copy = std::move(cluster.copies[i]);
            cluster.copies.erase(cluster.copies.begin() + static_cast<std::ptrdiff_t>(i));
            copy.land(copy.done);
        }
    }

    void end_clusters() {
        for (std::size_t i = 0; i < grid_.resident.size();) {
            Cluster& c = *grid_.resident[i];
            if (!has_ended(c)) {
                ++i;
                continue;
            }
            if (!c.copies.empty() && options().check_async)
                throw Fault(name() + ": ends while a bulk copy into its shared memory is in flight, issued at " +
                            position(*grid_.kernel, c.copies.front().instruction));
            land_stores(c, [](const BulkStore&) { return true; });
            grid_.resident.erase(grid_.resident.begin() + static_cast<std::ptrdiff_t>(i));
            grid_.effect();
        }
    }

    // Everybody waited or spun through a whole round: let copies land, then let a further cluster start. If there is
    // neither, and warps only wait, nothing can change any more; if some spin, they are given time to prove that they
    // only spin.
    void nothing_happened() {
        for (auto& c : grid_.resident)
            if (!c->copies.empty() || !c->stores.empty()) {
                c->turn += 16;
                return;
            }
        if (next_ < clusters_ && grid_.resident.size() < most_resident_) return start_next();
        const bool spinning = grid_.executed - executed_before_ > spin_threshold();
        executed_before_ = grid_.executed;
        if (!spinning) ++idle_rounds_;
        const bool stalled = grid_.executed - grid_.executed_at_last_effect > options().stall_limit;
        if (idle_rounds_ < 200 && !stalled) return;
        std::string text = name() + ": deadlock: ";
        text += stalled ? "nothing visible happened for " + std::to_string(options().stall_limit) + " warp instructions"
                        : "all warps wait";
        if (next_ < clusters_)
            text += "; " + std::to_string(clusters_ - next_) + " clusters cannot start before one of the " +
                    std::to_string(grid_.resident.size()) + " resident ones ends";
        throw Fault(text + where_warps_are(grid_));
    }

    // A round in which every group at most retries its wait executes about this many instructions.
    u64 spin_threshold() const {
        u64 groups = 0;
        for (auto& c : grid_.resident)
            for (auto& b : c->blocks)
                for (Warp& w : b->warps) groups += w.groups.size();
        return 8 * groups;
    }

    Grid& grid_;
    u32 clusters_, most_resident_, next_ = 0;
    u64 idle_rounds_ = 0, executed_before_ = 0;
};

std::vector<std::string>& counts() {
    static std::vector<std::string> c;
    return c;
}

// Kernels compute in the default floating-point environment, whatever the caller's.
class DefaultFloatingPoint {
  public:
    DefaultFloatingPoint() {
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultFloatingPoint() { std::fesetenv(&before_); }
    DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
    DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

  private:
    std::fenv_t before_;
};

}  // namespace

u32 shared_per_block_limit() {
    switch (options().arch) {
        case 80:
            return 163 << 10;
        case 86:
            return 99 << 10;
        default:
            return 227 << 10;
    }
}

u32 blocks_per_multiprocessor(const Kernel& kernel, u32 threads, u32 dynamic_shared) {
    const u32 shared = kernel.shared_static + dynamic_shared;
    if (threads == 0 || threads > 1024 || shared > shared_per_block_limit()) return 0;
    const u32 threads_per = options().arch == 86 ? 1536 : 2048, blocks_per = options().arch == 86 ? 16 : 32;
    return std::min(
        {threads_per / ((threads + 31) / 32 * 32), (shared_per_block_limit() + 1024) / (shared + 1024), blocks_per});
}

namespace {
const Kernel* last_kernel = nullptr;  // that ran to its end, and that nothing else followed
}

void forget_last_launch() {
    last_kernel = nullptr;
}

void launch(Kernel& kernel, Dim grid, Dim block, Dim cluster, const std::vector<u8>& params, u32 dynamic_shared,
            bool early) {
    static u32 launches = 0;
    const DefaultFloatingPoint environment;
    Grid g;
    g.kernel = &kernel;
    g.grid = grid;
    g.block = block;
    g.cluster = cluster;
    g.params = params.data();
    g.dynamic_shared = dynamic_shared;
    g.launch = ++launches;
    if (early) g.before = last_kernel;
    forget_last_launch();
    g.random.seed(options().seed);
    g.counters.on = options().count || options().timing || !options().synchronised_file.empty();
    if (g.counters.on) g.counters.start(kernel);
    const u64 clusters = grid.count() / cluster.count();
    const u32 per = blocks_per_multiprocessor(kernel, static_cast<u32>(block.count()), dynamic_shared);
    const u64 resident =
        std::max<u64>(1, static_cast<u64>(per) * static_cast<u64>(options().multiprocessors) / cluster.count());
    std::string timing;
    if (options().timing)
        timing = run_timed(g, static_cast<u32>(clusters), per);
    else
        Scheduler(g, static_cast<u32>(clusters), static_cast<u32>(std::min(resident, clusters))).run();
    if (g.before && !g.waited && options().check_global)
        throw Fault(demangled(kernel.name) + ": began before the launch before it, " + demangled(g.before->name) +
                    ", had ended, and has no griddepcontrol.wait: nothing orders what follows after that one");
    last_kernel = &kernel;
    if (!options().synchronised_file.empty())
        std::ofstream(options().synchronised_file, std::ios::app) << synchronised(kernel, g.counters);
    if (!options().count && !options().timing) return;
    std::string json = to_json(kernel, g.counters, grid.count(), static_cast<u32>(block.count()), timing);
    if (options().counts_file.empty())
        counts().push_back(std::move(json));
    else
        std::ofstream(options().counts_file, std::ios::app) << json + "\n";
}

std::string take_counts() {
    std::string all = "[";
    for (const std::string& c : counts()) all += (all.size() > 1 ? ", " : "") + c;
    counts().clear();
    return all + "]";
}

}  // namespace emulator
