// A model of time: discrete events on one multiprocessor, or on those of one cluster. The warp whose time is earliest
// executes next, functionally and in program order; time is bookkeeping beside it. An instruction issues at the latest
// of: its operands are ready; the instruction kWindow places back has issued; what keeps program order is done; its
// unit is free; its sub-partition (warp % 4) has an issue slot. Barriers and mbarriers pass times on with their clocks
// (Clock::cycle); wgmmas and copies have times of completion, at which those who wait for them go on.
#include "timing.h"

#include <algorithm>
#include <array>
#include <deque>
#include <sstream>
#include <unordered_map>
#include <unordered_set>

#include "async_copy.h"
#include "counters.h"
#include "memory.h"
#include "options.h"
#include "scheduler.h"
#include "tensor_map.h"

namespace emulator {
namespace {

// ---- Constants, of an H100 SXM5: cycles of a multiprocessor unless said otherwise. Two are fitted to published
// results: kAccumulatorGap, which has no known physical meaning, and kClock, which stands for power and all that is
// unknown. kL2Bandwidth and kWindow were chosen after results were seen. The rest is documented or common knowledge.
constexpr double kClock = 1.506e9;
constexpr u64 kAccumulatorGap = 200;  // the tensor unit idles before a wgmma on a fresh or touched accumulator
constexpr double kL2Bandwidth = 10e12, kDramBandwidth = 3.35e12 * 0.92;  // bytes per second
constexpr u64 kWindow = 48;            // instructions a warp may have begun beyond the oldest that waits
constexpr int kMultiprocessors = 132;  // which share L2 and DRAM evenly
constexpr u32 kAluLatency = 5, kSpecialLatency = 20, kMmaLatency = 33, kVoteLatency = 12;
constexpr u64 kSharedLatency = 24, kL1Latency = 33, kL2Latency = 260, kDramLatency = 560;
constexpr u32 kAluCycles = 2, kSpecialCycles = 8;  // of a unit, for a warp
constexpr double kMmaCycles = 6.5;                 // of an mma.sync of 32 bytes along k
constexpr u64 kWgmmaWake = 36, kWgmmaQueue = 64;   // end of a wgmma to the waiter; wgmmas a warpgroup may have begun
constexpr u64 kTensorCopyLatency = 240, kCpAsyncLatency = 40;  // beyond an ordinary load's
constexpr u64 kMbarrierWake = 30, kBarrierWake = 25, kClusterWake = 200, kBranch = 8, kBlockStart = 600;
constexpr u64 kStoreQueue = 4000;  // cycles that stores may be behind
constexpr u32 kRegisters = 65536, kSharedPipeQueue = 16, kL1Sectors = 3072;
constexpr double kReductionBytes = 2;  // of L2, a byte of a bulk reduction

// ---- Resources
// Busy cycles, one bit each, so that requests may come out of the order of time.
class Unit {
  public:
    u64 first_free(u64 from) {
        for (u64 word = from / 64, mask = ~0ull << from % 64;; ++word, mask = ~0ull) {
            if (word >= busy_.size()) busy_.resize(word + 1024);
            if (const u64 free = ~busy_[word] & mask) return 64 * word + static_cast<u64>(std::countr_zero(free));
        }
    }
    // The last of the cycles taken; `from` if none.
    u64 take(u64 from, u64 cycles) {
        u64 last = from;
        for (; cycles > 0; --cycles, ++used_, from = last + 1) {
            last = first_free(from);
            busy_[last / 64] |= 1ull << last % 64;
        }
        return last;
    }
    u64 used() const { return used_; }

  private:
    std::vector<u64> busy_;
    u64 used_ = 0;
};

// Bytes that pass in each bucket of cycles, for the same reason.
class Bandwidth {
  public:
    explicit Bandwidth(double bytes_per_second) : capacity_(bytes_per_second / kMultiprocessors / kClock * kBucket) {}

    // The cycle in which the last of the bytes passes.
    u64 take(u64 from, double bytes) {
        bytes_ += bytes;
        for (u64 bucket = open(from / kBucket);; bucket = open(bucket + 1)) {
            const double now = std::min(capacity_ - used_[bucket], bytes);
            used_[bucket] += now;
            bytes -= now;
            if (used_[bucket] > capacity_ * 0.9999) next_[bucket] = bucket + 1;
            if (bytes <= 1e-6)
                return std::max(from,
                                static_cast<u64>((static_cast<double>(bucket) + used_[bucket] / capacity_) * kBucket));
        }
    }
    double bytes() const { return bytes_; }
    double share(u64 cycles) const { return bytes_ / (capacity_ / kBucket * static_cast<double>(cycles)); }

  private:
    static constexpr u64 kBucket = 32;
    // The first bucket at or after this one that has room.
    u64 open(u64 bucket) {
        while (used_.size() <= bucket + 1) {
            used_.push_back(0);
            next_.push_back(next_.size());
        }
        while (next_[bucket] != bucket) {
            const u64 after = next_[bucket];
            if (after >= next_.size()) return open(after);
            bucket = next_[bucket] = next_[after];
        }
        return bucket;
    }

    double capacity_, bytes_ = 0;
    std::vector<double> used_;
    std::vector<u64> next_;
};

struct Multiprocessor {
    Unit issue[4], alu[4], fma[4], special[4], fp64[4], mma[4], shared;
    double mma_fraction[4] = {};  // of a cycle, owed
    Bandwidth l2{kL2Bandwidth}, dram{kDramBandwidth};
    u64 tensor_free = 0, tensor_busy = 0;  // wgmma's
    std::unordered_set<u64> l1;            // sectors, the oldest leave first
    std::deque<u64> l1_order;

    bool in_l1(u64 sector) {
        if (!l1.insert(sector).second) return true;
        l1_order.push_back(sector);
        if (l1_order.size() > kL1Sectors) {
            l1.erase(l1_order.front());
            l1_order.pop_front();
        }
        return false;
    }
};

// ---- What an instruction costs
enum class Kind : u8 {
    plain,
    memory,
    matrix,  // ldmatrix, stmatrix, shfl: the shared memory's unit
    mma,
    wgmma,
    wgmma_wait,
    bulk_load,
    bulk_store,
    bulk_commit,
    bulk_wait,
    copy,
    copy_commit,
    copy_wait,
    copy_arrive,
    barrier,
    mbarrier,
    cluster,
    atomic,
    branch
};
enum class UnitKind : u8 { none, alu, fma, special, fp64 };

struct Cost {
    Kind kind = Kind::plain;
    UnitKind unit = UnitKind::none;
    u32 issues = 1;  // slots; 0: ptxas makes nothing of it, or folds it into its users
    u32 cycles = 1, latency = kAluLatency;
    bool in_order = false;  // nothing of the warp passes it
    bool writes_memory = false;
    Stall result = Stall::alu_result;  // what a reader of its result waits for
    std::vector<u32> reads, writes;    // registers, by slot / 128, then predicates
};

bool any_of(const std::string& name, std::initializer_list<const char*> names) {
    return std::any_of(names.begin(), names.end(), [&](const char* n) { return name == n; });
}
bool has(const Instruction& in, const char* modifier) {
    return std::find(in.modifiers.begin(), in.modifiers.end(), modifier) != in.modifiers.end();
}

void collect(const Operand& o, u32 registers, std::vector<u32>& into) {
    if (o.kind == Operand::Kind::reg || o.kind == Operand::Kind::address) into.push_back(o.slot / 128);
    if (o.kind == Operand::Kind::predicate) into.push_back(registers + o.slot);
    if (o.paired_predicate >= 0) into.push_back(registers + static_cast<u32>(o.paired_predicate));
    for (const Operand& p : o.parts) collect(p, registers, into);
}

// Arithmetic, by opcode and type.
void cost_of_arithmetic(const Instruction& in, Cost& c) {
    const std::string& op = in.opcode;
    std::vector<Type> types;
    for (const std::string& m : in.modifiers)
        if (const Type t = type_named(m); t != Type::none) types.push_back(t);
    const Type type = types.empty() ? Type::b32 : types.back();
    const bool floating = is_floating(type), wide = size_of(type) == 8, approximate = has(in, "approx");
    const auto unit = [&](UnitKind kind, u32 issues, u32 cycles) {
        c.unit = kind, c.issues = issues, c.cycles = cycles;
    };
    const auto special = [&](u32 issues, u32 latency) {
        unit(UnitKind::special, issues, kSpecialCycles);
        c.latency = latency;
        c.result = Stall::special_result;
    };
    if (any_of(op, {"mov", "cvta", "ret", "isspacep", "brkpt"})) {
        c.issues = 0;
    } else if (op == "cvt") {
        const Type to = types.size() > 1 ? types[0] : type;
        if (is_floating(to) != floating)
            special(1, kAluLatency);
        else if (floating || (size_of(to) > size_of(type) && is_signed(type)))
            unit(UnitKind::alu, 1, kAluCycles);
        else
            c.issues = 0;
    } else if (any_of(op, {"ex2", "lg2", "rcp", "rsqrt", "sqrt", "tanh", "sin", "cos"})) {
        const bool one = approximate && (has(in, "ftz") || op == "rcp" || op == "tanh");
        special(one ? 1 : approximate ? 3 : 8, kSpecialLatency + (approximate ? 0 : 20));
    } else if (op == "div" && floating) {
        special(approximate ? 3 : 10, kSpecialLatency + (approximate ? 10 : 60));
    } else if (op == "div" || op == "rem") {
        unit(UnitKind::alu, wide ? 40 : 18, 18 * kAluCycles);
        c.latency = 120;
    } else if (floating && any_of(op, {"fma", "add", "sub", "mul"})) {
        unit(type == Type::f64 ? UnitKind::fp64 : UnitKind::fma, 1, type == Type::f64 ? 2 : 1);
    } else if (op == "mul" || op == "mad") {
        const bool low_of_64 = wide && !has(in, "wide");
        unit(UnitKind::fma, low_of_64 ? 4 : 1, low_of_64 ? 8 : 2);
        if (low_of_64) c.latency = 12;
    } else if (floating && (op == "neg" || op == "abs")) {
        c.issues = 0;  // a modifier of its users
    } else if (any_of(op, {"elect", "vote", "match", "redux", "activemask"})) {
        unit(UnitKind::alu, 1, kAluCycles);
        c.latency = kVoteLatency;
    } else {
        const u32 words = wide && op != "setp" ? 2 : 1;
        unit(UnitKind::alu, words, words * kAluCycles);
    }
}

Cost cost_of(const Instruction& in, u32 registers) {
    Cost c;
    const std::string& op = in.opcode;
    bool writes_first = true;  // the first operand is the result
    const auto of = [&](Kind kind, bool in_order) { c.kind = kind, c.in_order = in_order; };
    if (any_of(op, {"ld", "ldu", "st"})) {
        writes_first = op != "st";
        c.writes_memory = op == "st";
        if (in.space == Space::param || in.space == Space::constant)
            c.issues = 0;
        else
            of(Kind::memory, has(in, "volatile") || has(in, "acquire") || has(in, "release"));
    } else if (any_of(op, {"shfl", "ldmatrix", "stmatrix"})) {
        of(Kind::matrix, false);
        writes_first = op != "stmatrix";
        c.result = Stall::shared_result;
    } else if (op == "mma") {
        of(Kind::mma, false);
        c.result = Stall::mma_result;
    } else if (op == "wgmma") {
        writes_first = false;
        if (has(in, "mma_async"))
            of(Kind::wgmma, true);
        else if (has(in, "wait_group"))
            of(Kind::wgmma_wait, true);
        else if (has(in, "commit_group"))
            c.issues = 0;
        else
            c.in_order = true;
    } else if (op == "bar" || op == "barrier") {
        of(has(in, "cluster") ? Kind::cluster : has(in, "warp") ? Kind::plain : Kind::barrier, true);
        writes_first = has(in, "red");
    } else if (op == "mbarrier") {
        of(Kind::mbarrier, true);
        writes_first = !in.operands.empty() && in.operands[0].kind != Operand::Kind::address;
    } else if (op == "cp") {
        writes_first = false;
        const bool bulk = has(in, "bulk");
        if (has(in, "commit_group"))
            of(bulk ? Kind::bulk_commit : Kind::copy_commit, true);
        else if (has(in, "wait_group") || has(in, "wait_all"))
            of(bulk ? Kind::bulk_wait : Kind::copy_wait, true);
        else if (has(in, "prefetch"))
            c.in_order = true;
        else if (bulk)
            of(has(in, "bulk_group") ? Kind::bulk_store : Kind::bulk_load, true);
        else if (has(in, "mbarrier"))
            of(Kind::copy_arrive, true);
        else
            of(Kind::copy, false);
    } else if (op == "atom" || op == "red") {
        writes_first = op == "atom";
        of(Kind::atomic, writes_first);
        c.result = Stall::global_result;
    } else if (any_of(op, {"bra", "exit", "trap", "call"})) {
        of(Kind::branch, true);
        writes_first = false;
    } else if (any_of(op, {"fence", "membar", "griddepcontrol", "setmaxnreg", "prefetch", "prefetchu", "nanosleep"})) {
        c.in_order = op == "fence" || op == "membar";
        writes_first = false;
    } else {
        cost_of_arithmetic(in, c);
    }
    if (op == "call") return c;  // its operands are places in frames
    for (std::size_t k = 0; k < in.operands.size(); ++k)
        collect(in.operands[k], registers, k == 0 && writes_first ? c.writes : c.reads);
    if (in.guard >= 0) c.reads.push_back(registers + static_cast<u32>(in.guard));
    return c;
}

// ---- What exists while the model runs
struct TimedWarp {
    Warp* warp;
    Multiprocessor* at;
    u32 part;                   // sub-partition
    std::vector<u64> ready;     // by register: when it holds its value
    std::vector<Stall> stall;   // by register: what its reader waits for until then
    std::vector<bool> chained;  // by register: only wgmmas have written it since one did
    std::array<u64, kWindow> issued_at{};
    u64 count = 0;                      // of instructions issued
    u64 last_issue = 0, last_seen = 0;  // of all; until when stalls are counted
    Stall why = Stall::branch;          // what LaneGroup::not_before stands for
    u64 blocked_at = ~0ull;             // events that had happened when it last tried in vain
    u64 copies_done = 0;                // of cp.async; then of each group
    std::vector<u64> copy_groups;
    u64 stores_read = 0, stores_done = 0;  // of bulk stores; then of each group
    std::vector<std::pair<u64, u64>> store_groups;

    // The earliest issue of its next instruction.
    u64 front() const {
        const LaneGroup* g = choose_group(*warp, false);
        return std::max(g ? g->not_before : 0, count >= kWindow ? issued_at[count % kWindow] : 0);
    }
    // Of the groups that these lanes are in: no instruction issues earlier.
    void hold(LaneMask lanes, u64 until, Stall reason) {
        for (LaneGroup& g : warp->groups)
            if (g.lanes & lanes && until > g.not_before) g.not_before = until, why = reason;
    }
};
struct TimedWarpgroup {
    std::vector<u64> starts{0}, ends{0};  // by the group's own time
};
struct TimedCluster {
    Cluster* cluster;
    u32 slot;
    std::vector<TimedWarp> warps;
    std::unordered_map<const Warpgroup*, TimedWarpgroup> groups;
};

class Model {
  public:
    Model(Grid& grid, u32 clusters, u32 by_shared_memory)
        : grid_(grid),
          clusters_(clusters),
          multiprocessors_(grid.cluster.count()),
          registers_(grid.kernel->register_bytes / 128 + 2) {
        if (const u64 most = options().timing_clusters) clusters_ = std::min(clusters_, static_cast<u32>(most));
        const u32 warps = static_cast<u32>((grid.block.count() + kLanes - 1) / kLanes);
        const u32 by_registers = kRegisters / (static_cast<u32>(options().timing_registers) * warps * kLanes);
        at_a_time_ = std::max(1u, std::min(by_registers, by_shared_memory));
        for (const Instruction& in : grid.kernel->code) costs_.push_back(cost_of(in, registers_));
    }

    void run() {
        for (u32 slot = 0; slot < at_a_time_; ++slot) start(0, slot);
        while (!running_.empty()) {
            TimedCluster* its_cluster = nullptr;
            TimedWarp* best = nullptr;
            u64 earliest = ~0ull, second = ~0ull;
            for (auto& c : running_)
                for (TimedWarp& t : c->warps) {
                    if (t.blocked_at == events_ || t.warp->groups.empty()) continue;
                    const u64 front = t.front();
                    if (front < earliest)
                        second = earliest, earliest = front, best = &t, its_cluster = c.get();
                    else
                        second = std::min(second, front);
                }
            if (!best)
                throw Fault(demangled(grid_.kernel->name) + ": deadlock: all warps wait" + where_warps_are(grid_));
            // It goes on while it is the earliest, or nearly so.
            const u64 events = events_;
            do {
                if (step(*its_cluster, *best)) continue;
                best->blocked_at = events_;
                break;
            } while (!best->warp->groups.empty() && events == events_ && best->front() <= second + 4);
            if (best->warp->groups.empty() && has_ended(*its_cluster->cluster)) end(its_cluster);
            if (grid_.executed > options().instruction_limit)
                throw Fault(demangled(grid_.kernel->name) + ": executed more than instruction_limit" +
                            where_warps_are(grid_));
        }
    }

    std::string json() const;

  private:
    void start(u64 time, u32 slot);
    void end(TimedCluster* which);
    bool step(TimedCluster& cluster, TimedWarp& t);
    u64 issue(TimedWarp& t, const LaneGroup& g, const Cost& c, Stall& why);
    void retire(TimedWarp& t, const Instruction& in, LaneMask lanes, const Cost& c, u64 at, u64 last, Stall why);
    void hold(TimedWarp& t, const Instruction& in, LaneMask lanes, u64 from, u64 until, Stall why);
    void set_results(TimedWarp& t, const Cost& c, u64 ready);
    void pass_through(TimedWarp& t, const Cost& c);
    u64 fetch(Multiprocessor& m, u64 from, u64 address, double bytes, bool writes);
    u64 access_global(TimedWarp& t, const Instruction& in, const u64* addresses, LaneMask lanes, u32 bytes, u64 at);
    void copy_in(TimedCluster& c, TimedWarp& t, u64 key, u64 at);
    void multiply(TimedCluster& c, TimedWarp& t, const Instruction& in, u64 at, bool fresh);
    Unit* unit_of(TimedWarp& t, const Cost& c) const;

    Grid& grid_;
    u32 clusters_, at_a_time_ = 1, next_ = 0;
    std::vector<Multiprocessor> multiprocessors_;
    u32 registers_;
    std::vector<Cost> costs_;
    std::vector<std::unique_ptr<TimedCluster>> running_;
    std::unordered_set<u64> seen_;  // 32-byte pieces that came from DRAM
    u64 events_ = 0;                // what may let others go on
    u64 end_ = 0, wgmmas_ = 0, fresh_wgmmas_ = 0;
};

void Model::start(u64 time, u32 slot) {
    if (next_ >= clusters_) return;
    grid_.resident.push_back(start_cluster(grid_, next_++));
    auto c = std::make_unique<TimedCluster>();
    c->cluster = grid_.resident.back().get();
    c->slot = slot;
    for (auto& b : c->cluster->blocks)
        for (Warp& w : b->warps) {
            TimedWarp t;
            t.warp = &w;
            t.at = &multiprocessors_[b->rank];
            t.part = static_cast<u32>((w.index + slot * b->warps.size()) % 4);
            t.ready.assign(registers_ + grid_.kernel->predicates + 2, 0);
            t.stall.assign(t.ready.size(), Stall::alu_result);
            t.chained.assign(t.ready.size(), false);
            t.last_issue = t.last_seen = time;
            t.hold(kAllLanes, time, Stall::branch);
            c->warps.push_back(std::move(t));
        }
    running_.push_back(std::move(c));
}

void Model::end(TimedCluster* which) {
    u64 time = 0;
    for (const TimedWarp& t : which->warps) time = std::max(time, t.last_seen);
    const u32 slot = which->slot;
    std::erase_if(grid_.resident, [&](const auto& c) { return c.get() == which->cluster; });
    std::erase_if(running_, [&](const auto& c) { return c.get() == which; });
    start(time + kBlockStart, slot);
}

Unit* Model::unit_of(TimedWarp& t, const Cost& c) const {
    switch (c.kind == Kind::plain ? c.unit : UnitKind::none) {
        case UnitKind::alu:
            return &t.at->alu[t.part];
        case UnitKind::fma:
            return &t.at->fma[t.part];
        case UnitKind::special:
            return &t.at->special[t.part];
        case UnitKind::fp64:
            return &t.at->fp64[t.part];
        default:
            return c.kind == Kind::mma ? &t.at->mma[t.part] : nullptr;
    }
}

// When the instruction issues; takes its slot.
u64 Model::issue(TimedWarp& t, const LaneGroup& g, const Cost& c, Stall& why) {
    u64 at = g.not_before;
    why = t.why;
    const auto not_before = [&](u64 time, Stall reason) {
        if (time > at) at = time, why = reason;
    };
    if (t.count >= kWindow) not_before(t.issued_at[t.count % kWindow], Stall::program_order);
    if (c.in_order) not_before(t.last_issue, Stall::program_order);
    for (u32 r : c.reads) not_before(t.ready[r], t.stall[r]);
    if (Unit* unit = unit_of(t, c))
        not_before(unit->first_free(at), c.kind == Kind::mma           ? Stall::mma_busy
                                         : c.unit == UnitKind::special ? Stall::special_busy
                                                                       : Stall::alu_busy);
    if (c.kind == Kind::memory || c.kind == Kind::matrix) {
        const u64 free = t.at->shared.first_free(at);
        if (free > at + kSharedPipeQueue) not_before(free - kSharedPipeQueue, Stall::shared_busy);
    }
    const u64 slot = t.at->issue[t.part].take(at, 1);
    if (slot > at + 1 && why == Stall::program_order) why = Stall::issue_slot;
    return slot;
}

// The instruction issued `at`, its last slot was `last`: what the warp waited for before it, and what follows from it.
void Model::retire(TimedWarp& t, const Instruction& in, LaneMask lanes, const Cost& c, u64 at, u64 last, Stall why) {
    t.issued_at[t.count++ % kWindow] = at;
    t.last_issue = std::max(t.last_issue, last);
    if (at > t.last_seen + 1)
        grid_.counters.by_instruction[in.index].stalls[static_cast<int>(why)] += at - t.last_seen - 1;
    t.last_seen = std::max(t.last_seen, last);
    if (c.in_order) t.hold(lanes, last, why);
    end_ = std::max(end_, last);
}

// The warp waits at the instruction.
void Model::hold(TimedWarp& t, const Instruction& in, LaneMask lanes, u64 from, u64 until, Stall why) {
    if (until <= from) return;
    grid_.counters.by_instruction[in.index].stalls[static_cast<int>(why)] += until - from;
    t.hold(lanes, until, why);
    t.last_seen = std::max(t.last_seen, until);
    end_ = std::max(end_, until);
}

void Model::set_results(TimedWarp& t, const Cost& c, u64 ready) {
    for (u32 r : c.writes) t.ready[r] = ready, t.stall[r] = c.result, t.chained[r] = false;
}

// An instruction that costs nothing: its result is ready when its sources are.
void Model::pass_through(TimedWarp& t, const Cost& c) {
    u64 ready = 0;
    Stall stall = Stall::alu_result;
    for (u32 r : c.reads)
        if (t.ready[r] > ready) ready = t.ready[r], stall = t.stall[r];
    const bool chained = !c.reads.empty() && t.chained[c.reads[0]];
    for (u32 r : c.writes) t.ready[r] = ready, t.stall[r] = stall, t.chained[r] = chained;
}

// Bytes that lie together pass between a multiprocessor and L2, and, where the cluster has not seen them, DRAM.
u64 Model::fetch(Multiprocessor& m, u64 from, u64 address, double bytes, bool writes) {
    const bool is_new = seen_.insert(address / 32).second;
    u64 time = m.l2.take(from, bytes), latency = kL2Latency;
    if (is_new || writes) {
        time = std::max(time, m.dram.take(from, bytes / options().timing_reuse));
        if (options().timing_reuse <= 4) latency = kDramLatency;
    }
    return time + (writes ? 0 : latency);
}

// Of a warp's load or store: when all of it is there.
u64 Model::access_global(TimedWarp& t, const Instruction& in, const u64* addresses, LaneMask lanes, u32 bytes, u64 at) {
    std::vector<u64> sectors;
    for_lanes(lanes, [&](int l) {
        for (u64 s = addresses[l] / 32; s <= (addresses[l] + bytes - 1) / 32; ++s) sectors.push_back(s);
    });
    std::sort(sectors.begin(), sectors.end());
    sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
    const bool writes = in.opcode == "st", cached = !writes && !has(in, "cg") && !has(in, "cv");
    u64 ready = at + kL1Latency, lines = 0, line = ~0ull;
    for (u64 s : sectors) {
        lines += s / 4 != line;
        line = s / 4;
        if (!cached || !t.at->in_l1(s)) ready = std::max(ready, fetch(*t.at, at, 32 * s, 32, writes));
    }
    t.at->shared.take(at, std::max<u64>(lines, (bytes * static_cast<u32>(std::popcount(lanes)) + 127) / 128));
    return ready;
}

// Bulk loads that the instruction issued land at once, and complete their bytes at the time that is modelled. `key`
// stands for where they come from.
void Model::copy_in(TimedCluster& c, TimedWarp& t, u64 key, u64 at) {
    u64 done = 0;
    std::vector<BulkCopy> copies;
    copies.swap(c.cluster->copies);
    for (BulkCopy& copy : copies) {
        if (!done) done = fetch(*t.at, at, key, copy.bytes, false) + kTensorCopyLatency;  // a multicast is one fetch
        copy.done.cycle = std::max(copy.done.cycle, done);
        copy.land(copy.done);
    }
}

// A wgmma of the warpgroup has been computed: when it ran. `fresh`: its accumulator is no wgmma's, or was touched.
void Model::multiply(TimedCluster& c, TimedWarp& t, const Instruction& in, u64 at, bool fresh) {
    const u32 first = t.warp->agent - t.warp->index % 4, n = in.variant;
    u64 start = std::max(at, t.at->tensor_free);
    for (u32 q = 0; q < 4; ++q)
        if (const LaneGroup& mate = c.warps[first + q].warp->groups[0]; mate.issued_at != kNoCycle)
            start = std::max(start, mate.issued_at);
    if (fresh) start += kAccumulatorGap;
    const bool a_in_registers = in.operands[1].kind == Operand::Kind::vector;
    const u64 cycles = std::max(n / 2, n / 4 + (a_in_registers ? 0 : 16));  // the unit's; the shared memory's
    t.at->tensor_free = start + cycles;
    t.at->tensor_busy += n / 2;
    ++wgmmas_;
    fresh_wgmmas_ += fresh;
    TimedWarpgroup& group = c.groups[&t.warp->block->warpgroups[t.warp->index / 4]];
    group.starts.push_back(start);
    group.ends.push_back(start + cycles);
}

// Executes one instruction of the warp; false if all its groups wait.
bool Model::step(TimedCluster& cluster, TimedWarp& t) {
    Warp& w = *t.warp;
    LaneGroup* g = choose_group(w, false);
    if (!g) {
        for (LaneGroup& other : w.groups) other.waiting = false;
        return false;
    }
    const Instruction& in = grid_.kernel->code[g->pc];
    const Cost& c = costs_[in.index];
    const LaneMask lanes = in.guard < 0 ? g->lanes : g->lanes & w.predicate(in.guard, in.guard_negated);
    Multiprocessor& m = *t.at;
    const bool split = w.groups.size() > 1;
    if (!lanes) {
        if (c.issues) {
            Cost slot;
            slot.reads = {c.reads.back()};  // the guard
            Stall why;
            const u64 at = issue(t, *g, slot, why);
            retire(t, in, g->lanes, slot, at, at, why);
        }
        run_warp(w, 1, false);
        events_ += split;
        return true;
    }

    // Before: what execution changes, and the model needs.
    Stall why = Stall::issue_slot;
    if (c.issues && g->issued_at == kNoCycle) g->issued_at = issue(t, *g, c, why);
    const u64 at = c.issues ? g->issued_at : g->not_before;
    u64 addresses[kLanes] = {};
    Space space = in.space;
    u64 key = 0;
    if (c.kind == Kind::memory || c.kind == Kind::copy || c.kind == Kind::atomic) {
        const std::size_t k = in.operands[0].kind == Operand::Kind::address && c.kind != Kind::copy ? 0 : 1;
        for_lanes(lanes, [&](int l) { addresses[l] = w.address(in.operands[k], l); });
        if (space == Space::generic) space = space_of(addresses[first_lane(lanes)]);
    }
    u32 store_bytes = 0;
    if (c.kind == Kind::bulk_load || c.kind == Kind::bulk_store) {
        const int l = first_lane(lanes);
        const Operand& far = in.operands[c.kind == Kind::bulk_load ? 1 : 0];
        key = w.address(far, l);
        const bool tensor = far.parts.size() > 1;
        if (c.kind == Kind::bulk_store)
            store_bytes = tensor ? reinterpret_cast<const TensorMap*>(space_of(key) == Space::param
                                                                          ? param_pointer(w, key, 128)
                                                                          : global_pointer(w, key, 128, false))
                                       ->box_bytes()
                                 : w.reg32(in.operands[2].slot)[l];
        if (tensor)
            for (const Operand& coordinate : far.parts[1].parts) key = key * 1000003 + w.reg32(coordinate.slot)[l];
    }
    const u64 waves = grid_.counters.by_instruction[in.index].shared_wavefronts;
    const Warpgroup* group =
        c.kind == Kind::wgmma || c.kind == Kind::wgmma_wait ? &w.block->warpgroups[w.index / 4] : nullptr;
    const u32 wgmmas = group ? group->time : 0;
    bool fresh = false;
    if (c.kind == Kind::wgmma) {
        const std::vector<Operand>& d = in.operands[0].parts;
        const bool adds =
            in.predicate_src >= 0 ? w.predicate(in.predicate_src, in.predicate_src_negated) & 1 : in.src[2];
        fresh = !adds || !t.chained[d[0].slot / 128];
    }
    w.clock.cycle = std::max(at, c.kind == Kind::copy_arrive ? t.copies_done : 0);
    const u64 before = w.clock.cycle;

    if (run_warp(w, 1, false) == Flow::wait) return true;  // choose_group finds out whether all of the warp waits
    for (LaneGroup& passed : w.groups)
        if (passed.lanes & lanes) passed.issued_at = kNoCycle;
    if (split || c.in_order || c.writes_memory || w.groups.empty()) ++events_;
    if (!c.issues) {
        pass_through(t, c);
        return true;
    }

    // After: when what it did is done.
    const u64 woken = w.clock.cycle > before ? w.clock.cycle : 0;
    const u64 taken = grid_.counters.by_instruction[in.index].shared_wavefronts - waves;
    const u64 last = c.issues > 1 ? m.issue[t.part].take(at + 1, c.issues - 1) : at;
    switch (c.kind) {
        case Kind::plain: {
            Unit* unit = unit_of(t, c);
            set_results(t, c, std::max(last, unit ? unit->take(at, c.cycles) : at) + c.latency);
            break;
        }
        case Kind::memory: {
            const u32 bytes = in.count * static_cast<u32>(in.operands[c.writes_memory ? 1 : 0].parts.size());
            u64 ready = at + kL1Latency;
            if (space == Space::shared)
                ready = m.shared.take(at, taken) + kSharedLatency;
            else if (space == Space::global)
                ready = access_global(t, in, addresses, lanes, bytes, at);
            if (c.writes_memory) {
                if (space == Space::global && ready > at + kStoreQueue)
                    hold(t, in, lanes, at, ready - kStoreQueue, Stall::global_result);
            } else {
                set_results(t, c, ready);
                const Stall stall = space == Space::shared ? Stall::shared_result : Stall::global_result;
                for (u32 r : c.writes) t.stall[r] = stall;
            }
            break;
        }
        case Kind::matrix:
            set_results(t, c, m.shared.take(at, std::max<u64>(taken, 1)) + kSharedLatency);
            break;
        case Kind::mma: {
            const double exact =
                kMmaCycles * static_cast<double>(in.operands[2].parts.size()) / 2 + m.mma_fraction[t.part];
            const u64 cycles = static_cast<u64>(exact);
            m.mma_fraction[t.part] = exact - static_cast<double>(cycles);
            set_results(t, c, m.mma[t.part].take(at, cycles) + kMmaLatency - static_cast<u64>(kMmaCycles));
            break;
        }
        case Kind::wgmma:
            if (group->time > wgmmas) multiply(cluster, t, in, at, fresh);
            for (const Operand& o : in.operands[0].parts) t.chained[o.slot / 128] = true;
            break;
        case Kind::atomic:
            if (space == Space::shared) {
                set_results(t, c,
                            m.shared.take(at, taken + static_cast<u64>(std::popcount(lanes)) / 4) + 2 * kSharedLatency);
            } else {
                std::unordered_set<u64> sectors;
                for_lanes(lanes, [&](int l) { sectors.insert(addresses[l] / 32); });
                const u64 done = m.l2.take(at, 64.0 * static_cast<double>(sectors.size()));
                set_results(t, c, done + kL2Latency + 100);
            }
            break;
        case Kind::copy: {
            const u32 bytes = in.count;
            m.shared.take(at, 2 * ((bytes * static_cast<u32>(std::popcount(lanes)) + 127) / 128));
            std::unordered_set<u64> sectors;
            for_lanes(lanes, [&](int l) {
                for (u64 s = addresses[l] / 32; s <= (addresses[l] + bytes - 1) / 32; ++s) sectors.insert(s);
            });
            for (u64 s : sectors)
                t.copies_done = std::max(t.copies_done, fetch(m, at, 32 * s, 32, false) + kCpAsyncLatency);
            break;
        }
        case Kind::bulk_load:
            copy_in(cluster, t, key & ~31ull, at);
            break;
        case Kind::bulk_store: {
            land_stores(*cluster.cluster, [](const BulkStore&) { return true; });
            const bool reduces = has(in, "reduce");
            const u64 done = fetch(m, at, key & ~31ull, store_bytes * (reduces ? kReductionBytes : 1), true);
            t.stores_read = std::max({t.stores_read, done, at + 250});
            t.stores_done = std::max(t.stores_done, done + 500);
            break;
        }
        case Kind::copy_commit:
            t.copy_groups.push_back(t.copies_done);
            break;
        case Kind::bulk_commit:
            t.store_groups.push_back({t.stores_read, t.stores_done});
            break;
        case Kind::branch:
            break;
        default:
            set_results(t, c, at + kVoteLatency);
    }
    retire(t, in, lanes, c, at, last, why);
    switch (c.kind) {
        case Kind::barrier:
            if (woken) hold(t, in, lanes, at, woken + kBarrierWake, Stall::barrier);
            break;
        case Kind::cluster:
            if (woken) hold(t, in, lanes, at, woken + kClusterWake, Stall::barrier);
            break;
        case Kind::mbarrier:
            if (woken) hold(t, in, lanes, at, woken + kMbarrierWake, Stall::mbarrier);
            break;
        case Kind::wgmma: {
            const std::vector<u64>& starts = cluster.groups[group].starts;
            if (starts.size() > kWgmmaQueue)
                hold(t, in, lanes, at, starts[starts.size() - kWgmmaQueue], Stall::wgmma_queue);
            break;
        }
        case Kind::wgmma_wait:
            if (const u32 waited = group->waited[w.index % 4])
                hold(t, in, lanes, at, cluster.groups[group].ends.at(waited) + kWgmmaWake, Stall::wgmma);
            break;
        case Kind::copy_wait:
            if (has(in, "wait_all"))
                hold(t, in, lanes, at, t.copies_done, Stall::cp_async);
            else if (t.copy_groups.size() > in.count)
                hold(t, in, lanes, at, t.copy_groups[t.copy_groups.size() - 1 - in.count], Stall::cp_async);
            break;
        case Kind::bulk_wait:
            if (t.store_groups.size() > in.count) {
                const auto [read, done] = t.store_groups[t.store_groups.size() - 1 - in.count];
                hold(t, in, lanes, at, in.flags ? read : done, Stall::bulk_store);
            }
            break;
        case Kind::branch:
            t.hold(lanes, last + kBranch, Stall::branch);
            break;
        default:
            if (woken) hold(t, in, lanes, at, woken, Stall::global_result);  // an acquire that saw a release
    }
    return true;
}

std::string Model::json() const {
    const Multiprocessor& m = multiprocessors_[0];
    const double cycles = static_cast<double>(std::max<u64>(end_, 1));
    double macs = 0;
    for (const InstructionCounts& c : grid_.counters.by_instruction) macs += static_cast<double>(c.tensor_macs);
    macs /= static_cast<double>(multiprocessors_.size());
    const auto quarter = [&](const Unit* units) {
        return static_cast<double>(units[0].used() + units[1].used() + units[2].used() + units[3].used()) / 4 / cycles;
    };
    std::ostringstream out;
    out.precision(6);
    out << "{\"cycles\": " << end_ << ", \"microseconds\": " << cycles / kClock * 1e6 << ", \"clusters\": " << clusters_
        << ", \"multiprocessors\": " << multiprocessors_.size() << ", \"at_a_time\": " << at_a_time_
        << ", \"tensor_tflops_if_all_do_the_same\": " << 2 * macs / (cycles / kClock) * kMultiprocessors / 1e12
        << ", \"wgmmas\": " << wgmmas_ << ", \"fresh_wgmmas\": " << fresh_wgmmas_
        << ", \"busy\": {\"wgmma\": " << static_cast<double>(m.tensor_busy) / cycles << ", \"mma\": " << quarter(m.mma)
        << ", \"special\": " << quarter(m.special) << ", \"alu\": " << quarter(m.alu) << ", \"fma\": " << quarter(m.fma)
        << ", \"issue\": " << quarter(m.issue) << ", \"shared\": " << static_cast<double>(m.shared.used()) / cycles
        << ", \"l2\": " << m.l2.share(end_) << ", \"dram\": " << m.dram.share(end_) << "}}";
    return out.str();
}

}  // namespace

std::string run_timed(Grid& grid, u32 clusters, u32 by_shared_memory) {
    Model model(grid, clusters, by_shared_memory);
    model.run();
    return model.json();
}

}  // namespace emulator
