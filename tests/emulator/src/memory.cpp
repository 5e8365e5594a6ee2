// Memory: which host memory is device memory; address spaces; ld, st, atom and red.
// PTX ISA: 5.1 "State Spaces", 6.4.1.1 "Generic Addressing", 8 "Memory Consistency Model", 9.7.9.8 "ld", 9.7.9.11 "st",
// 9.7.9.19 "isspacep", 9.7.9.20 "cvta", 9.7.9.23 "mapa", 9.7.9.24 "getctarank", 9.7.13.5 "atom", 9.7.13.6 "red".
#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "instructions.h"
#include "options.h"
#include "shadow.h"

namespace emulator {
namespace {

// ---- Ranges that kernels may touch
struct Range {
    u64 begin, end;
    bool writable;
};
struct Registration {
    u64 bytes;
    bool writable;
};
std::multimap<u64, Registration>& registrations() {
    static std::multimap<u64, Registration> r;
    return r;
}
// The registrations as disjoint ranges, sorted: overlapping ones become one, writable if any of them is. Ranges that
// only touch stay apart, so that running off the end of a tensor into its neighbour is an error.
std::vector<Range>& ranges() {
    static std::vector<Range> r;
    return r;
}
void rebuild_ranges() {
    std::vector<Range>& list = ranges();
    list.clear();
    for (const auto& [begin, r] : registrations()) {
        if (!list.empty() && begin < list.back().end) {
            list.back().end = std::max(list.back().end, begin + r.bytes);
            list.back().writable |= r.writable;
        } else {
            list.push_back({begin, begin + r.bytes, r.writable});
        }
    }
}
const Range* range_at(u64 address) {
    static std::size_t last = 0;
    const std::vector<Range>& list = ranges();
    if (last < list.size() && address >= list[last].begin && address < list[last].end) return &list[last];
    const auto after =
        std::upper_bound(list.begin(), list.end(), address, [](u64 a, const Range& r) { return a < r.begin; });
    if (after == list.begin()) return nullptr;
    last = static_cast<std::size_t>(after - list.begin()) - 1;
    return &list[last];
}

std::string hexadecimal(u64 x) {
    char text[24];
    std::snprintf(text, sizeof text, "%#llx", static_cast<unsigned long long>(x));
    return text;
}

}  // namespace

void device_register(const void* p, std::size_t bytes, bool writable) {
    registrations().insert({reinterpret_cast<u64>(p), {bytes, writable}});
    rebuild_ranges();
}

void device_unregister(const void* p) {
    const auto found = registrations().find(reinterpret_cast<u64>(p));
    if (found == registrations().end()) return;
    registrations().erase(found);
    rebuild_ranges();
}

void* device_allocate(std::size_t bytes) {
    const std::size_t with_gap = (bytes + 255) / 256 * 256 + 256;
    void* p = std::aligned_alloc(256, with_gap);
    std::memset(p, 0xff, with_gap);
    device_register(p, bytes, true);
    return p;
}

void device_free(void* p) {
    if (!p) return;
    const auto found = registrations().find(reinterpret_cast<u64>(p));
    if (found != registrations().end()) forget_global(found->first, found->second.bytes);
    device_unregister(p);
    std::free(p);
}

bool is_read_only(u64 address) {
    if (!options().check_readonly) return false;
    const Range* r = range_at(address);
    return r && address < r->end && !r->writable;
}

u8* global_pointer(Warp& w, u64 address, u32 bytes, bool write) {
    const Range* r = range_at(address);
    if (options().check_bounds && (!r || address + bytes > r->end)) {
        if (r && address < r->end + 4096)
            fault(w, "global access of " + std::to_string(bytes) + " bytes at offset " +
                         std::to_string(address - r->begin) + " of " + std::to_string(r->end - r->begin) +
                         " bytes of device memory");
        fault(w, "global access of " + std::to_string(bytes) + " bytes at " + hexadecimal(address) +
                     ", which is no device memory of this launch");
    }
    if (write && r && !r->writable && options().check_readonly)
        fault(w, "writes to read-only memory, at offset " + std::to_string(address - r->begin) + " of " +
                     std::to_string(r->end - r->begin) + " bytes");
    return reinterpret_cast<u8*>(address);
}

u8* shared_pointer(Warp& w, u64 address, u32 bytes, Block*& block, u32& offset) {
    const u32 rank = static_cast<u32>(address) >> 24;
    offset = static_cast<u32>(address) & kSharedOffsetMask;
    Cluster& cluster = cluster_of(w);
    if (rank > cluster.blocks.size()) fault(w, "a shared::cluster address of a block outside of the cluster");
    block = rank ? cluster.blocks[rank - 1].get() : w.block;
    if (block != w.block && options().check_bounds &&
        std::all_of(block->warps.begin(), block->warps.end(), [](const Warp& other) { return other.groups.empty(); }))
        fault(w, "shared memory of a block of the cluster that has ended");
    if (offset + bytes > block->shared.size())
        fault(w, "shared access of " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                     "; the block has " + std::to_string(block->shared.size()) + " bytes");
    return block->shared.data() + offset;
}

u8* local_pointer(Warp& w, int lane, u64 address, u32 bytes) {
    const u64 offset = static_cast<u32>(address);
    if (offset + bytes > w.frame_bytes)
        fault(w, "local access of " + std::to_string(bytes) + " bytes at offset " +
                     std::to_string(static_cast<i32>(offset)) + "; a thread has " + std::to_string(w.frame_bytes) +
                     " bytes of local memory");
    return w.frame.data() + static_cast<std::size_t>(lane) * w.frame_bytes + offset;
}

const u8* param_pointer(Warp& w, u64 address, u32 bytes) {
    const u64 offset = static_cast<u32>(address);
    if (offset + bytes > grid_of(w).kernel->param_bytes)
        fault(w, "access of " + std::to_string(bytes) + " bytes at offset " + std::to_string(static_cast<i32>(offset)) +
                     " of the kernel's " + std::to_string(grid_of(w).kernel->param_bytes) + " bytes of parameters");
    return grid_of(w).params + offset;
}

Space space_of(u64 generic_address) {
    switch (generic_address >> 56) {
        case kSharedWindow >> 56:
            return Space::shared;
        case kLocalWindow >> 56:
            return Space::local;
        case kParamWindow >> 56:
            return Space::param;
        default:
            return Space::global;
    }
}

void check_aligned(Warp& w, u64 address, u32 to, const char* what) {
    if (address % to == 0) return;
    if (!options().check_alignment) return;
    fault(w, "misaligned: " + std::string(what) + " at " + hexadecimal(address & 0xffffffffffffffull) +
                 ", which is no multiple of " + std::to_string(to));
}

LaneAccess access(Warp& w, int lane, u64 address, Space space, u32 bytes, bool write, bool strong, bool sums) {
    if (space == Space::generic) space = space_of(address);
    check_aligned(w, address, bytes, "access");
    w.lane = lane;
    LaneAccess result{nullptr, space, nullptr, 0};
    switch (space) {
        case Space::shared:
            result.pointer = shared_pointer(w, address, bytes, result.block, result.offset);
            if (write)
                shared_write(w, actor(w, strong, sums), *result.block, result.offset, bytes);
            else
                shared_read(w, actor(w, strong), *result.block, result.offset, bytes);
            break;
        case Space::local:
            result.pointer = local_pointer(w, lane, address, bytes);
            break;
        case Space::param:
            if (write) fault(w, "writes to a kernel's parameters");
            result.pointer = const_cast<u8*>(param_pointer(w, address, bytes));
            break;
        default:
            result.pointer = global_pointer(w, address, bytes, write);
            if (write)
                global_write(w, actor(w, strong, sums), address, bytes);
            else if (space != Space::constant)
                global_read(w, actor(w, strong), address, bytes);
    }
    w.lane = -1;
    return result;
}

namespace {

// ---- Order through global memory
// A release (a write after a fence, or one that is itself a release) leaves what its warp knew at the address; an
// acquire takes it up. Relaxed writes show what was known at the warp's last fence; what relaxed reads see is known
// from the reader's next fence on. (8.8 "Release and Acquire Patterns")
enum class Order : u32 { weak, relaxed, acquire, release, acq_rel };

struct SyncLocation {
    u32 launch = 0;
    std::map<u32, Clock> by_cluster;  // what was released, in the terms of the releasing cluster
};
std::unordered_map<u64, SyncLocation>& sync_locations() {
    static std::unordered_map<u64, SyncLocation> map;
    return map;
}

void order_write(Warp& w, u64 address, Order order) {
    if (order == Order::weak) return;
    const bool releases = order == Order::release || order == Order::acq_rel;
    const Clock& shown = releases ? w.clock : w.fenced;
    if (shown.own.empty()) return;
    SyncLocation& s = sync_locations()[address];
    if (s.launch != grid_of(w).launch) s.launch = grid_of(w).launch, s.by_cluster.clear();
    s.by_cluster[cluster_number(w)].join(shown);
    w.tick();
}

void order_read(Warp& w, u64 address, Order order) {
    if (order == Order::weak) return;
    const auto s = sync_locations().find(address);
    if (s == sync_locations().end() || s->second.launch != grid_of(w).launch) return;
    Clock& into = order == Order::acquire || order == Order::acq_rel ? w.clock : w.seen_by_relaxed;
    for (const auto& [cluster, clock] : s->second.by_cluster) into.join_from(clock, cluster, cluster_number(w));
}

Order order_of(Binder& b, Order otherwise) {
    const std::string name = b.one_of({"weak", "relaxed", "volatile", "acquire", "release", "acq_rel", "mmio"});
    b.ignore({"cta", "cluster", "gpu", "sys"});
    if (name == "acquire") return Order::acquire;
    if (name == "release") return Order::release;
    if (name == "acq_rel") return Order::acq_rel;
    if (name == "weak") return Order::weak;
    return name.empty() ? otherwise : Order::relaxed;
}

void ignore_cache_hints(Binder& b) {
    b.ignore({"ca",
              "cg",
              "cs",
              "lu",
              "cv",
              "wb",
              "wt",
              "nc",
              "L1::evict_last",
              "L1::no_allocate",
              "L1::evict_first",
              "L1::evict_normal",
              "L1::evict_unchanged",
              "L2::cache_hint",
              "L2::64B",
              "L2::128B",
              "L2::256B",
              "L2::evict_last",
              "L2::evict_first",
              "L2::evict_normal",
              "unified"});
}

void count_access(Warp& w, const Instruction& in, const Operand& address, LaneMask lanes, u32 bytes) {
    Grid& grid = grid_of(w);
    u64 addresses[kLanes] = {};
    u32 offsets[kLanes] = {};
    for_lanes(lanes, [&](int lane) {
        addresses[lane] = w.address(address, lane);
        offsets[lane] = static_cast<u32>(addresses[lane]) & kSharedOffsetMask;
    });
    const Space space = in.space == Space::generic ? space_of(addresses[first_lane(lanes)]) : in.space;
    const u32 index = in.index;
    if (space == Space::shared)
        grid.counters.shared_access(index, offsets, lanes, bytes);
    else if (space == Space::global)
        grid.counters.global_access(index, addresses, lanes, bytes);
}

// ---- ld, st. count: bytes of an element; flags: Order.
Flow execute_load(Warp& w, const Instruction& in, LaneMask lanes) {
    const Operand& address = in.operands[1];
    const std::vector<Operand>& elements = in.operands[0].parts;
    const u32 element_bytes = in.count, bytes = element_bytes * static_cast<u32>(elements.size());
    const Order order = static_cast<Order>(in.flags);
    if (grid_of(w).counters.on) count_access(w, in, address, lanes, bytes);
    const bool signs = is_signed(in.type);
    int before = -1;  // the lane before, if it has read global memory
    for_lanes(lanes, [&](int lane) {
        const u64 at = w.address(address, lane);
        if (before >= 0 && at == w.address(address, before)) {  // one read for both
            for (const Operand& e : elements)
                if (e.wide)
                    w.reg64(e.slot)[lane] = w.reg64(e.slot)[before];
                else
                    w.reg32(e.slot)[lane] = w.reg32(e.slot)[before];
            before = lane;
            return;
        }
        const LaneAccess a = access(w, lane, at, in.space, bytes, false, order != Order::weak);
        before = a.space == Space::global ? lane : -1;
        const u8* p = a.pointer;
        if (element_bytes == 4) {
            for (const Operand& e : elements) {
                u32 x;
                std::memcpy(&x, p, 4);
                p += 4;
                if (e.wide)
                    w.reg64(e.slot)[lane] = signs ? static_cast<u64>(static_cast<i64>(static_cast<i32>(x))) : x;
                else
                    w.reg32(e.slot)[lane] = x;
            }
            if (a.space == Space::global) order_read(w, at, order);
            return;
        }
        for (const Operand& e : elements) {
            u64 x = 0;
            std::memcpy(&x, p, element_bytes);
            if (signs) {
                const u32 shift = 64 - 8 * element_bytes;
                x = static_cast<u64>(static_cast<i64>(x << shift) >> shift);
            }
            if (e.wide)
                w.reg64(e.slot)[lane] = x;
            else
                w.reg32(e.slot)[lane] = static_cast<u32>(x);
            p += element_bytes;
        }
        if (a.space == Space::global) order_read(w, at, order);
    });
    return Flow::next;
}

Flow execute_store(Warp& w, const Instruction& in, LaneMask lanes) {
    const Operand& address = in.operands[0];
    const std::vector<Operand>& elements = in.operands[1].parts;
    const u32 element_bytes = in.count, bytes = element_bytes * static_cast<u32>(elements.size());
    const Order order = static_cast<Order>(in.flags);
    if (grid_of(w).counters.on) count_access(w, in, address, lanes, bytes);
    bool changed = false;
    for_lanes(lanes, [&](int lane) {
        const u64 at = w.address(address, lane);
        const LaneAccess a = access(w, lane, at, in.space, bytes, true, order != Order::weak);
        if (a.space == Space::global) order_write(w, at, order);
        u8* p = a.pointer;
        if (element_bytes == 4) {
            for (const Operand& e : elements) {
                const u32 x = e.wide ? static_cast<u32>(w.reg64(e.slot)[lane]) : w.reg32(e.slot)[lane];
                u32 old;
                std::memcpy(&old, p, 4);
                changed |= old != x;
                std::memcpy(p, &x, 4);
                p += 4;
            }
            return;
        }
        for (const Operand& e : elements) {
            const void* from = e.wide ? static_cast<void*>(w.reg64(e.slot) + lane) : w.reg32(e.slot) + lane;
            changed |= std::memcmp(p, from, element_bytes) != 0;
            std::memcpy(p, from, element_bytes);
            p += element_bytes;
        }
    });
    if (changed) grid_of(w).effect();
    return Flow::next;
}

void bind_load_or_store(Binder& b, bool store) {
    Instruction& in = b.in;
    b.memory_space();
    if (in.space == Space::param && store) in.space = Space::local;  // a call's parameter
    in.type = b.last_type();
    if (in.type == Type::b128) b.unsupported("128-bit elements");
    b.one_of({"v2", "v4", "v8"});
    ignore_cache_hints(b);
    in.flags = static_cast<u32>(order_of(b, Order::weak));
    const std::size_t address = store ? 0 : 1;
    b.address(address, in.space);
    in.count = static_cast<u32>(size_of(in.type));
    b.vector(1 - address, in.count == 8);
    const Class klass = in.space == Space::shared                              ? Class::shared
                        : in.space == Space::local || in.space == Space::param ? Class::local
                                                                               : Class::global;
    b.run(store ? execute_store : execute_load, klass);
}

// ---- atom, red. variant: Atomic; flags: Order; count: bytes; dst operands only for atom.
// One or two halves of a register: their sums, or the smaller or larger ones.
template <class H>
u64 combine_halves(Atomic op, u64 a, u64 b, int halves) {
    u64 all = 0;
    for (int h = 0; h < halves; ++h) {
        H x, y;
        x.bits = static_cast<u16>(a >> (16 * h));
        y.bits = static_cast<u16>(b >> (16 * h));
        const float p = x, q = y;
        const bool y_is_less = q < p || (q == p && std::signbit(q));
        const H r = op == Atomic::add ? H(p + q) : (op == Atomic::min) == y_is_less ? y : x;
        all |= static_cast<u64>(r.bits) << (16 * h);
    }
    return all;
}

// In global memory, atom.add.f32 flushes subnormals; in shared memory it keeps them.
float atomic_sum(float a, float b, bool flushes) {
    return flushes ? FlushedFloat::flush(FlushedFloat::flush(a) + FlushedFloat::flush(b)) : a + b;
}

u64 atomic_float(Atomic op, Type type, u64 a, u64 b, bool flushes) {
    switch (type) {
        case Type::f16:
        case Type::f16x2:
            return combine_halves<Half>(op, a, b, size_of(type) / 2);
        case Type::bf16:
        case Type::bf16x2:
            return combine_halves<BFloat16>(op, a, b, size_of(type) / 2);
        case Type::f32:
            return std::bit_cast<u32>(atomic_sum(std::bit_cast<float>(static_cast<u32>(a)),
                                                 std::bit_cast<float>(static_cast<u32>(b)), flushes));
        default:
            return std::bit_cast<u64>(std::bit_cast<double>(a) + std::bit_cast<double>(b));
    }
}

u64 atomic_pick(Type type, u64 a, u64 b, bool larger) {
    const auto pick = [&](auto x, auto y) { return larger == (x < y) ? b : a; };
    switch (type) {
        case Type::s32:
            return pick(static_cast<i32>(a), static_cast<i32>(b));
        case Type::s64:
            return pick(static_cast<i64>(a), static_cast<i64>(b));
        default:
            return pick(a, b);
    }
}

}  // namespace

u64 atomic_result(Atomic op, Type type, u64 old, u64 x, bool flushes) {
    if (is_floating(type)) return atomic_float(op, type, old, x, flushes);
    switch (op) {
        case Atomic::add:
            return old + x;
        case Atomic::min:
            return atomic_pick(type, old, x, false);
        case Atomic::max:
            return atomic_pick(type, old, x, true);
        case Atomic::inc:
            return old >= x ? 0 : old + 1;
        case Atomic::dec:
            return old == 0 || old > x ? x : old - 1;
        case Atomic::and_:
            return old & x;
        case Atomic::or_:
            return old | x;
        case Atomic::xor_:
            return old ^ x;
        default:  // exch; cas has found what it expected
            return x;
    }
}

std::optional<Atomic> atomic_named(const std::string& name) {
    static const std::map<std::string, Atomic> names = {
        {"add", Atomic::add},   {"min", Atomic::min},  {"max", Atomic::max}, {"inc", Atomic::inc},
        {"dec", Atomic::dec},   {"and", Atomic::and_}, {"or", Atomic::or_},  {"xor", Atomic::xor_},
        {"exch", Atomic::exch}, {"cas", Atomic::cas}};
    const auto found = names.find(name);
    return found == names.end() ? std::nullopt : std::optional(found->second);
}

bool is_order_sensitive(Atomic op, Type type) {
    return op == Atomic::add && is_floating(type);
}

namespace {

Flow execute_atomic(Warp& w, const Instruction& in, LaneMask lanes) {
    const bool returns = in.operands[0].kind != Operand::Kind::address;
    const Operand& address = in.operands[returns ? 1 : 0];
    const std::vector<Operand>& values = in.operands[returns ? 2 : 1].parts;
    const u32 bytes = in.count * static_cast<u32>(values.size());
    const Atomic op = static_cast<Atomic>(in.variant);
    const Order order = static_cast<Order>(in.flags);
    if (grid_of(w).counters.on) count_access(w, in, address, lanes, bytes);
    bool changed = false;
    for_lanes(lanes, [&](int lane) {
        const u64 at = w.address(address, lane);
        const Space space = in.space == Space::generic ? space_of(at) : in.space;
        if (space != Space::global && space != Space::shared)
            fault(w, "an atomic operation on neither global nor shared memory");
        const LaneAccess a = access(w, lane, at, space, bytes, true, true, is_order_sensitive(op, in.type));
        if (space == Space::global) order_read(w, at, order), order_write(w, at, order);
        u8* p = a.pointer;
        for (std::size_t k = 0; k < values.size(); ++k, p += in.count) {
            u64 old = 0;
            std::memcpy(&old, p, in.count);
            const bool swaps = op != Atomic::cas || old == w.reg(in.operands[2].parts[0], lane);
            const u64 x = op == Atomic::cas ? w.reg(in.operands[3], lane) : w.reg(values[k], lane);
            const u64 result = swaps ? atomic_result(op, in.type, old, x, space == Space::global) : old;
            changed |= std::memcmp(p, &result, in.count) != 0;
            std::memcpy(p, &result, in.count);
            if (returns) {
                const Operand& d = in.operands[0].parts[k];
                if (d.wide)
                    w.reg64(d.slot)[lane] = old;
                else
                    w.reg32(d.slot)[lane] = static_cast<u32>(old);
            }
        }
    });
    if (changed) grid_of(w).effect();
    return Flow::next;
}

void bind_atomic(Binder& b, bool returns) {
    Instruction& in = b.in;
    b.memory_space();
    in.type = b.last_type();
    const std::string name = b.one_of({"add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas"});
    if (name.empty()) b.unsupported("which operation?");
    const bool halves =
        in.type == Type::f16 || in.type == Type::bf16 || in.type == Type::f16x2 || in.type == Type::bf16x2;
    if (is_floating(in.type) && name != "add" && !(halves && (name == "min" || name == "max")))
        b.unsupported("floating-point atomics other than add");
    in.variant = static_cast<u32>(*atomic_named(name));
    b.one_of({"v2", "v4", "v8"});
    b.ignore({"noftz"});
    ignore_cache_hints(b);
    in.flags = static_cast<u32>(order_of(b, Order::relaxed));
    in.count = static_cast<u32>(size_of(in.type));
    if (in.count < 2 || in.count > 8) b.unsupported("atomics of this size");
    const bool wide = in.count == 8;
    const std::size_t address = returns ? 1 : 0;
    if (returns) b.vector(0, wide);
    b.address(address, in.space);
    b.vector(address + 1, wide);
    if (name == "cas") {
        if (!returns) b.unsupported("red has no cas");
        b.source(3, wide);
    }
    b.run(execute_atomic, in.space == Space::shared ? Class::shared : Class::global);
}

// ---- Addresses
Flow execute_convert_address(Warp& w, const Instruction& in, LaneMask lanes) {
    const u64 window = in.space == Space::shared  ? kSharedWindow
                       : in.space == Space::local ? kLocalWindow
                       : in.space == Space::param ? kParamWindow
                                                  : 0;
    const u64* from = w.reg64(in.src[0]);
    u64* to = w.reg64(in.dst);
    const bool to_space = in.variant;
    for_lanes(lanes, [&](int l) { to[l] = !to_space ? from[l] + window : window ? from[l] & 0xffffffffu : from[l]; });
    return Flow::next;
}

Flow execute_is_in_space(Warp& w, const Instruction& in, LaneMask lanes) {
    LaneMask yes = 0;
    for_lanes(lanes, [&](int l) { yes |= static_cast<u32>(space_of(w.reg64(in.src[0])[l]) == in.space) << l; });
    w.set_predicate(in.predicate_dst, lanes, yes);
    return Flow::next;
}

// mapa: the same offset in the memory of another block of the cluster.
Flow execute_map_address(Warp& w, const Instruction& in, LaneMask lanes) {
    const u32* rank = w.reg32(in.src[1]);
    for_lanes(lanes, [&](int l) {
        if (in.variant)
            w.reg64(in.dst)[l] = (w.reg64(in.src[0])[l] & ~0xff000000ull) | static_cast<u64>(rank[l] + 1) << 24;
        else
            w.reg32(in.dst)[l] = (w.reg32(in.src[0])[l] & kSharedOffsetMask) | (rank[l] + 1) << 24;
    });
    return Flow::next;
}

Flow execute_get_rank(Warp& w, const Instruction& in, LaneMask lanes) {
    for_lanes(lanes, [&](int l) {
        const u32 address = in.variant ? static_cast<u32>(w.reg64(in.src[0])[l]) : w.reg32(in.src[0])[l];
        w.reg32(in.dst)[l] = address >> 24 ? (address >> 24) - 1 : w.block->rank;
    });
    return Flow::next;
}

}  // namespace

// What the fence tells the race check about global memory; the proxies are barriers.cpp's matter.
Flow execute_memory_fence(Warp& w, const Instruction&, LaneMask) {
    w.clock.join(w.seen_by_relaxed);
    w.seen_by_relaxed = {};
    w.fenced = w.clock;
    w.tick();
    return Flow::next;
}

bool orders(const Instruction& in) {
    if (in.opcode != "ld" && in.opcode != "st" && in.opcode != "atom" && in.opcode != "red") return false;
    const Order order = static_cast<Order>(in.flags);
    return order == Order::acquire || order == Order::release || order == Order::acq_rel;
}

void make_relaxed(Instruction& in) {
    in.flags = static_cast<u32>(Order::relaxed);
}

void bind_ld(Binder& b) {
    bind_load_or_store(b, false);
}
void bind_st(Binder& b) {
    bind_load_or_store(b, true);
}
void bind_atom(Binder& b) {
    bind_atomic(b, true);
}
void bind_red(Binder& b) {
    if (b.has("async")) b.unsupported("red.async");
    bind_atomic(b, false);
}

void bind_cvta(Binder& b) {
    b.memory_space();
    b.type(0);
    b.in.variant = b.has("to");
    b.in.dst = b.destination(0, true);
    b.in.src[0] = b.source(1, true);
    b.run(execute_convert_address, Class::integer);
}

void bind_isspacep(Binder& b) {
    b.memory_space();
    b.in.predicate_dst = b.predicate_destination(0);
    b.in.src[0] = b.source(1, true);
    b.run(execute_is_in_space, Class::integer);
}

void bind_mapa(Binder& b) {
    b.memory_space();
    const bool wide = size_of(b.last_type()) == 8;
    b.in.dst = b.destination(0, wide);
    b.in.src[0] = b.source(1, wide);
    b.in.src[1] = b.source(2, false);
    b.in.variant = wide;
    b.run(execute_map_address, Class::integer);
}

void bind_getctarank(Binder& b) {
    b.memory_space();
    const bool wide = size_of(b.last_type()) == 8;
    b.in.dst = b.destination(0, false);
    b.in.src[0] = b.source(1, wide);
    b.in.variant = wide;
    b.run(execute_get_rank, Class::integer);
}

}  // namespace emulator
