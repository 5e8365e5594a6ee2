// What the lanes of a warp do together: shuffles, votes, matches, reductions, elections.
// PTX ISA: 9.7.9.6 "shfl.sync", 9.7.13.9 "vote.sync", 9.7.13.10 "match.sync", 9.7.13.11 "activemask",
// 9.7.13.12 "redux.sync", 9.7.13.14 "elect.sync", 9.7.13.2 "bar.warp.sync".
#include <algorithm>
#include <cstring>

#include "instructions.h"
#include "lanes.h"
#include "options.h"
#include "shadow.h"

namespace emulator {
namespace {

// The lanes named by the member mask must all be here: false if some are still to come. Meeting is a synchronisation of
// the warp: what lanes wrote before it is seen by the others after it.
bool gathered(Warp& w, LaneMask lanes, u32 mask_slot) {
    const u32* masks = w.reg32(mask_slot);
    const LaneMask members = masks[first_lane(lanes)];
    if (options().check_masks) {
        for_lanes(lanes, [&](int l) {
            if (masks[l] != members) fault(w, "the lanes of a warp disagree on the member mask");
        });
        if (members == 0) fault(w, "the member mask is empty");
        if (lanes & ~members) {
            w.lane = first_lane(lanes & ~members);
            fault(w, "an executing lane is not in the member mask");
        }
    }
    const LaneMask present = members & w.live;  // lanes that have exited are not waited for
    if ((lanes & present) != present) return false;
    ++w.epoch;
    return true;
}

// shfl. variant: 0 up, 1 down, 2 bfly, 3 idx; src: value, lane, clamp and segment, member mask; predicate_dst: was it
// there?
Flow execute_shuffle(Warp& w, const Instruction& in, LaneMask lanes) {
    if (!gathered(w, lanes, in.src[3])) return Flow::wait;
    u32 values[kLanes];
    std::memcpy(values, w.reg32(in.src[0]), sizeof values);
    u32* d = w.reg32(in.dst);
    const u32 *b = w.reg32(in.src[1]), *c = w.reg32(in.src[2]);
    LaneMask there = 0;
    for_lanes(lanes, [&](int lane) {
        const int l = lane, clamp = static_cast<int>(c[l] & 31), segment = static_cast<int>(c[l] >> 8 & 31);
        const int by = static_cast<int>(b[l] & 31), most = (l & segment) | (clamp & ~segment), least = l & segment;
        int from = 0;
        bool inside = false;
        switch (in.variant) {
            case 0:
                from = l - by, inside = from >= most;
                break;
            case 1:
                from = l + by, inside = from <= most;
                break;
            case 2:
                from = l ^ by, inside = from <= most;
                break;
            default:
                from = least | (by & ~segment), inside = from <= most;
        }
        if (!inside) from = l;
        if (!(lanes >> from & 1) && options().check_masks) {
            w.lane = l;
            fault(w, "shfl reads lane " + std::to_string(from) + ", which does not take part");
        }
        d[l] = values[from];
        there |= static_cast<u32>(inside) << l;
    });
    w.set_predicate(in.predicate_dst, lanes, there);
    return Flow::next;
}

// vote. variant: 0 all, 1 any, 2 uni, 3 ballot.
Flow execute_vote(Warp& w, const Instruction& in, LaneMask lanes) {
    if (!gathered(w, lanes, in.src[0])) return Flow::wait;
    const LaneMask yes = w.predicate(in.predicate_src, in.predicate_src_negated) & lanes;
    if (in.variant == 3) {
        u32* d = w.reg32(in.dst);
        for_lanes(lanes, [&](int l) { d[l] = yes; });
        return Flow::next;
    }
    const bool r = in.variant == 0 ? yes == lanes : in.variant == 1 ? yes != 0 : yes == lanes || yes == 0;
    w.set_predicate(in.predicate_dst, lanes, r ? kAllLanes : 0);
    return Flow::next;
}

// match. variant: 1 all, 0 any.
Flow execute_match(Warp& w, const Instruction& in, LaneMask lanes) {
    if (!gathered(w, lanes, in.src[1])) return Flow::wait;
    const bool wide = size_of(in.type) == 8;
    const auto value = [&](int l) { return wide ? w.reg64(in.src[0])[l] : w.reg32(in.src[0])[l]; };
    LaneMask equal[kLanes] = {}, found = 0;
    for_lanes(lanes, [&](int l) {
        for_lanes(lanes, [&](int k) { equal[l] |= static_cast<u32>(value(k) == value(l)) << k; });
        if (in.variant && equal[l] != lanes) equal[l] = 0;
        found |= static_cast<u32>(equal[l] != 0) << l;
    });
    for_lanes(lanes, [&](int l) { w.reg32(in.dst)[l] = equal[l]; });
    w.set_predicate(in.predicate_dst, lanes, found);
    return Flow::next;
}

enum class Reduce : u32 { add, min, max, and_, or_, xor_ };
Flow execute_reduce(Warp& w, const Instruction& in, LaneMask lanes) {
    if (!gathered(w, lanes, in.src[1])) return Flow::wait;
    const u32* a = w.reg32(in.src[0]);
    const bool is_signed_type = is_signed(in.type);
    const auto less = [&](u32 x, u32 y) { return is_signed_type ? static_cast<i32>(x) < static_cast<i32>(y) : x < y; };
    u32 r = a[first_lane(lanes)];
    for_lanes(lanes & (lanes - 1), [&](int l) {
        switch (static_cast<Reduce>(in.variant)) {
            case Reduce::add:
                r += a[l];
                break;
            case Reduce::min:
                r = less(a[l], r) ? a[l] : r;
                break;
            case Reduce::max:
                r = less(r, a[l]) ? a[l] : r;
                break;
            case Reduce::and_:
                r &= a[l];
                break;
            case Reduce::or_:
                r |= a[l];
                break;
            case Reduce::xor_:
                r ^= a[l];
                break;
        }
    });
    u32* d = w.reg32(in.dst);
    for_lanes(lanes, [&](int l) { d[l] = r; });
    return Flow::next;
}

Flow execute_active_mask(Warp& w, const Instruction& in, LaneMask lanes) {
    u32* d = w.reg32(in.dst);
    for_lanes(lanes, [&](int l) { d[l] = lanes; });
    return Flow::next;
}

Flow execute_elect(Warp& w, const Instruction& in, LaneMask lanes) {
    if (!gathered(w, lanes, in.src[0])) return Flow::wait;
    const int leader = first_lane(lanes);
    u32* d = w.reg32(in.dst);
    for_lanes(lanes, [&](int l) { d[l] = static_cast<u32>(leader); });
    w.set_predicate(in.predicate_dst, lanes, 1u << leader);
    return Flow::next;
}

Flow execute_warp_barrier(Warp& w, const Instruction& in, LaneMask lanes) {
    return gathered(w, lanes, in.src[0]) ? Flow::next : Flow::wait;
}

}  // namespace

void bind_shfl(Binder& b) {
    b.ignore({"sync"});
    b.last_type();
    const std::string mode = b.one_of({"up", "down", "bfly", "idx"});
    b.in.variant = mode == "up" ? 0 : mode == "down" ? 1 : mode == "bfly" ? 2 : 3;
    b.in.predicate_dst = b.operand(0).paired_predicate;
    b.in.dst = b.destination(0, false);
    b.sources(1, 4, false);
    b.run(execute_shuffle, Class::shared);
}

void bind_vote(Binder& b) {
    b.ignore({"sync", "pred", "b32"});
    const std::string mode = b.one_of({"all", "any", "uni", "ballot"});
    b.in.variant = mode == "all" ? 0 : mode == "any" ? 1 : mode == "uni" ? 2 : 3;
    if (mode == "ballot")
        b.in.dst = b.destination(0, false);
    else
        b.in.predicate_dst = b.predicate_destination(0);
    b.predicate_source(1);
    b.in.src[0] = b.source(2, false);
    b.run(execute_vote, Class::integer);
}

void bind_match(Binder& b) {
    b.ignore({"sync"});
    b.in.variant = b.one_of({"any", "all"}) == "all";
    b.in.type = b.last_type();
    b.in.predicate_dst = b.operand(0).paired_predicate;
    b.in.dst = b.destination(0, false);
    b.in.src[0] = b.source(1, size_of(b.in.type) == 8);
    b.in.src[1] = b.source(2, false);
    b.run(execute_match, Class::integer);
}

void bind_redux(Binder& b) {
    b.ignore({"sync"});
    b.in.type = b.last_type();
    if (is_floating(b.in.type)) b.unsupported("floating-point redux");
    const std::string op = b.one_of({"add", "min", "max", "and", "or", "xor"});
    b.in.variant = static_cast<u32>(op == "add"   ? Reduce::add
                                    : op == "min" ? Reduce::min
                                    : op == "max" ? Reduce::max
                                    : op == "and" ? Reduce::and_
                                    : op == "or"  ? Reduce::or_
                                                  : Reduce::xor_);
    b.in.dst = b.destination(0, false);
    b.sources(1, 2, false);
    b.run(execute_reduce, Class::integer);
}

void bind_activemask(Binder& b) {
    b.last_type();
    b.in.dst = b.destination(0, false);
    b.run(execute_active_mask, Class::integer);
}

void bind_elect(Binder& b) {
    b.ignore({"sync"});
    b.in.predicate_dst = b.operand(0).paired_predicate;
    b.in.dst = b.destination(0, false);
    b.in.src[0] = b.source(1, false);
    b.run(execute_elect, Class::integer);
}

void bind_warp_barrier(Binder& b) {  // bar.warp.sync
    b.ignore({"warp", "sync"});
    b.in.src[0] = b.source(0, false);
    b.run(execute_warp_barrier, Class::barrier);
}

}  // namespace emulator
