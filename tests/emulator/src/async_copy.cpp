// Asynchronous copies: cp.async, cp.async.bulk, tensor copies (TMA), and reductions.
// PTX ISA: 9.7.9.25.3 "Non-bulk copy", 9.7.9.25.4 "Bulk copy", 9.7.9.27.1 "Tensor copy", 9.7.9.27.2 "Bulk and Tensor
// copy completion instructions", 9.7.13.15.15 "cp.async.mbarrier.arrive"; 5.5 "Tensors".
//
// Each lands as late as the program allows: cp.async when it is waited for; a bulk load makes its destination garbage
// at once and holds the data some random turns later; a bulk store or reduction reaches global memory some random turns
// later, at wait_group at the latest. Bulk copies are agents of their own for the race check: a store still reads its
// source until wait_group.read, and has written its destination only at wait_group.
#include "async_copy.h"

#include <algorithm>
#include <cstring>

#include "barriers.h"
#include "instructions.h"
#include "linker.h"
#include "memory.h"
#include "options.h"
#include "shadow.h"
#include "tensor_map.h"

namespace emulator {
namespace {

// ---- cp.async: 4, 8 or 16 bytes a lane. src[0]: bytes that are copied, the rest is zeros, if flags & 1;
// predicate_src: ignore the source.
void land(Warp& w, PendingCopy& c) {
    set_in_flight(*c.block, c.offset, c.bytes, false);
    w.lane = c.lane;
    Actor a = actor(w);
    a.asynchronous = false;  // cp.async works in the generic proxy
    shared_write(w, a, *c.block, c.offset, c.bytes);
    w.lane = -1;
    u8* to = c.block->shared.data() + c.offset;
    std::memset(to, 0, c.bytes);
    std::memcpy(to, c.from, c.valid);
}

void land_all(Warp& w, u32 up_to_group, LaneMask lanes) {
    std::vector<PendingCopy> later;
    for (PendingCopy& c : w.copies) {
        if (c.group > up_to_group || !(lanes >> c.lane & 1))
            later.push_back(c);
        else
            land(w, c);
    }
    if (later.size() != w.copies.size()) grid_of(w).effect();
    w.copies.swap(later);
}

Flow execute_cp_async(Warp& w, const Instruction& in, LaneMask lanes) {
    const u32 bytes = in.count;
    if (grid_of(w).counters.on) {
        u64 from[kLanes] = {};
        u32 to[kLanes] = {};
        for_lanes(lanes, [&](int l) {
            from[l] = w.address(in.operands[1], l);
            to[l] = static_cast<u32>(w.address(in.operands[0], l)) & kSharedOffsetMask;
        });
        grid_of(w).counters.global_access(w.current->index, from, lanes, bytes);
        grid_of(w).counters.shared_access(w.current->index, to, lanes, bytes);
    }
    for_lanes(lanes, [&](int lane) {
        w.lane = lane;
        u32 valid = in.flags & 1 ? std::min(bytes, w.reg32(in.src[0])[lane]) : bytes;
        if (in.predicate_src >= 0 && w.predicate(in.predicate_src, in.predicate_src_negated) >> lane & 1) valid = 0;
        const u64 to = w.address(in.operands[0], lane), from = w.address(in.operands[1], lane);
        Block* block;
        u32 offset;
        shared_pointer(w, to, bytes, block, offset);
        check_aligned(w, offset, bytes, "cp.async destination");
        const u8* source = nullptr;
        if (valid) {
            check_aligned(w, from, bytes, "cp.async source");
            source = global_pointer(w, from, valid, false);
            global_read(w, actor(w), from, valid);
        }
        shared_write(w, actor(w), *block, offset, bytes);
        set_in_flight(*block, offset, bytes, true);
        w.copies.push_back({block, offset, bytes, valid, source, lane, w.copy_group, w.current->index});
    });
    w.lane = -1;
    return Flow::next;
}

Flow execute_cp_commit(Warp& w, const Instruction&, LaneMask) {
    ++w.copy_group;
    return Flow::next;
}

// count: groups that may be pending; flags: 1 waits for all, committed or not.
Flow execute_cp_wait(Warp& w, const Instruction& in, LaneMask lanes) {
    if (in.flags)
        land_all(w, ~0u, lanes);
    else if (w.copy_group > in.count)
        land_all(w, w.copy_group - 1 - in.count, lanes);
    return Flow::next;
}

// The mbarrier gets an arrival when the lane's copies have landed: here, at once. flags: .noinc.
Flow execute_cp_mbarrier_arrive(Warp& w, const Instruction& in, LaneMask lanes) {
    land_all(w, ~0u, lanes);
    for_lanes(lanes, [&](int lane) {
        w.lane = lane;
        Block* block;
        u32 offset;
        mbarrier_at(w, w.address(in.operands[0], lane), block, offset);
        mbarrier_arrive_for(w, *block, offset, !in.flags);
    });
    w.lane = -1;
    w.tick();
    return Flow::next;
}

// ---- Bulk copies
// An engine of the cluster at its next time; it knows what the issuing warp knows.
struct Engine {
    u32 agent, time;
    Clock knows;
};
Engine next_engine(Warp& w) {
    Cluster& c = cluster_of(w);
    const u32 e = c.next_engine++ % kCopyEngines;
    Engine engine{c.first_engine() + e, ++c.engine_times[e], w.clock};
    w.tick();
    return engine;
}

u64 some_turns_later(Warp& w) {
    return cluster_of(w).turn + 1 + grid_of(w).random() % 64;
}

const TensorMap& tensor_map(Warp& w, u64 address, Space space) {
    const u8* p;
    if (space == Space::param || space_of(address) == Space::param)
        p = param_pointer(w, address, 128);
    else
        p = global_pointer(w, address, 128, false);
    const TensorMap& map = *reinterpret_cast<const TensorMap*>(p);
    if (map.magic != TensorMap::kMagic) fault(w, "the address given for a tensor map holds none");
    if (options().check_alignment && (address & 0xffffff) % 64)
        fault(w, "misaligned: a tensor map at no multiple of 64");
    return map;
}

// Calls f(offset in the box, global address, bytes, inside the tensor) for runs of elements along the first dimension,
// of at most 16 bytes, which no swizzle tears apart.
template <class F>
void for_rows_of_box(const TensorMap& map, const i32* corner, F f) {
    u32 rows = 1;
    for (u32 d = 1; d < map.rank; ++d) rows *= map.box[d];
    for (u32 row = 0; row < rows; ++row) {
        u64 base = map.address;
        bool row_inside = true;
        u32 rest = row;
        for (u32 d = 1; d < map.rank; ++d) {
            const i64 x = static_cast<i64>(corner[d]) + static_cast<i64>(rest % map.box[d]) * map.element_stride[d];
            rest /= map.box[d];
            row_inside &= x >= 0 && x < static_cast<i64>(map.extent[d]);
            base += static_cast<u64>(x) * map.stride_bytes[d - 1];
        }
        const auto is_inside = [&](i64 x) { return row_inside && x >= 0 && x < static_cast<i64>(map.extent[0]); };
        const u32 most = map.element_stride[0] == 1 ? 16u / map.element_bytes : 1;
        u32 count = 1;
        for (u32 i = 0; i < map.box[0]; i += count) {
            const i64 x = static_cast<i64>(corner[0]) + static_cast<i64>(i) * map.element_stride[0];
            const bool inside = is_inside(x);
            count = 1;
            while ((i + count) % most != 0 && i + count < map.box[0] && is_inside(x + count) == inside) ++count;
            f((row * map.box[0] + i) * map.element_bytes, base + static_cast<u64>(x) * map.element_bytes,
              count * map.element_bytes, inside);
        }
    }
}

void read_corner(Warp& w, const Operand& address, const TensorMap& map, int lane, i32* corner) {
    const std::vector<Operand>& coordinates = address.parts.at(1).parts;
    if (coordinates.size() != map.rank)
        fault(w,
              std::to_string(coordinates.size()) + " coordinates for a tensor map of rank " + std::to_string(map.rank));
    for (u32 d = 0; d < map.rank; ++d) corner[d] = static_cast<i32>(w.reg32(coordinates[d].slot)[lane]);
}

void check_bulk(Warp& w, u64 a, u64 b, u32 bytes) {
    check_aligned(w, a, 16, "bulk copy address");
    check_aligned(w, b, 16, "bulk copy address");
    check_aligned(w, bytes, 16, "bulk copy size");
}

constexpr u32 kTensor = 1, kMulticast = 2, kReduce = 4;

// [dst], [src] or [map, {coordinates}], (bytes,) [mbarrier] (, mask). flags: kTensor, kMulticast.
Flow execute_bulk_load(Warp& w, const Instruction& in, LaneMask lanes) {
    for_lanes(lanes, [&](int lane) {
        w.lane = lane;
        const bool tensor = in.flags & kTensor;
        const std::size_t barrier = tensor ? 2 : 3;
        Cluster& cluster = cluster_of(w);
        Block *to_block, *barrier_block;
        u32 offset, barrier_offset;
        shared_pointer(w, w.address(in.operands[0], lane), 1, to_block, offset);
        mbarrier_at(w, w.address(in.operands[barrier], lane), barrier_block, barrier_offset);
        std::vector<std::pair<Block*, Block*>> destinations;  // and the block of the mbarrier
        if (in.flags & kMulticast) {
            const u32 mask = static_cast<u32>(w.reg(in.operands[barrier + 1], lane)) & 0xffff;
            if (mask >> cluster.blocks.size()) fault(w, "multicast to a block outside of the cluster");
            for (u32 r = 0; r < cluster.blocks.size(); ++r)
                if (mask >> r & 1) destinations.push_back({cluster.blocks[r].get(), cluster.blocks[r].get()});
        } else {
            destinations.push_back({to_block, barrier_block});
        }

        const Engine engine = next_engine(w);
        const Actor reader{engine.agent, engine.time, &engine.knows, true, false};
        std::vector<u8> data;
        u32 swizzle = 0;
        if (tensor) {
            const TensorMap map = tensor_map(w, w.address(in.operands[1], lane), in.space);
            i32 corner[5];
            read_corner(w, in.operands[1], map, lane, corner);
            data.assign(map.box_bytes(), 0);
            swizzle = map.swizzle;
            check_aligned(w, offset, 128, "tensor copy destination");
            for_rows_of_box(map, corner, [&](u32 at, u64 from, u32 bytes, bool inside) {
                if (!inside) {
                    if (map.fill_nan) std::memset(&data[at], 0xff, bytes);
                    return;
                }
                std::memcpy(&data[at], global_pointer(w, from, bytes, false), bytes);
                global_read(w, reader, from, bytes);
            });
        } else {
            const u32 bytes = w.reg32(in.operands[2].slot)[lane];
            const u64 from = w.address(in.operands[1], lane);
            check_bulk(w, from, offset, bytes);
            if (bytes == 0) return;
            data.resize(bytes);
            if (space_of(from) == Space::shared || in.variant) {  // from this block's memory to another's
                Block* from_block;
                u32 from_offset;
                const u8* p = shared_pointer(w, from, bytes, from_block, from_offset);
                shared_read(w, reader, *from_block, from_offset, bytes);
                std::memcpy(data.data(), p, bytes);
            } else {
                std::memcpy(data.data(), global_pointer(w, from, bytes, false), bytes);
                global_read(w, reader, from, bytes);
            }
        }
        const u32 bytes = static_cast<u32>(data.size());
        for (auto [to, at] : destinations) {
            if (offset + bytes > to->shared.size())
                fault(w, "the destination of a bulk copy ends outside of the block's shared memory");
            mbarrier_at(w, static_cast<u64>(at->rank + 1) << 24 | barrier_offset, barrier_block, barrier_offset);
            mbarrier_check_async_use(w, *at, barrier_offset);
            shared_write(w, reader, *to, offset, bytes);
            set_in_flight(*to, offset, bytes, true);
            if (tensor)
                for (u32 word = offset / 4; word < (offset + bytes) / 4; ++word)
                    to->cells[word].laid = static_cast<u8>(1 + swizzle) & 7;
            std::memset(to->shared.data() + offset, 0xff, bytes);
            Clock done = engine.knows;  // who sees the mbarrier's phase sees what the copy did
            if (done.own.size() <= engine.agent) done.own.resize(engine.agent + 1);
            done.own[engine.agent] = engine.time;
            cluster.copies.push_back({some_turns_later(w), std::move(done),
                                      [=](const Clock& known) {
                                          for (u32 k = 0; k < bytes; k += 16)
                                              std::memcpy(to->shared.data() + swizzled(offset + k, swizzle), &data[k],
                                                          std::min(16u, bytes - k));
                                          set_in_flight(*to, offset, bytes, false);
                                          mbarrier_complete_bytes(*at, barrier_offset, bytes, known);
                                          to->cluster->grid->effect();
                                      },
                                      w.current->index, bytes, to});
        }
    });
    w.lane = -1;
    return Flow::next;
}

// ---- Bulk stores and reductions. type: of a reduction's elements; variant: Atomic.
// Sums of float32 flush subnormals: 9.7.9.25.4.2 says so of bulk reductions. It says nothing of those by a tensor map
// (9.7.9.27.1.3), so of these it is varied, unless the map's type is FLOAT32_FTZ.
bool flushes(const TensorMap& map) {
    return map.flushes || options().arith_seed % 2 == 0;
}
bool is_reduced(Atomic op, Type type) {  // by a tensor map: the table of 9.7.9.27.1.3
    switch (op) {
        case Atomic::add:
            return type != Type::s64 && type != Type::f64 && type != Type::tf32 && size_of(type) > 1 &&
                   type != Type::u16;
        case Atomic::min:
        case Atomic::max:
            return type == Type::f16 || type == Type::bf16 || (size_of(type) > 2 && !is_floating(type));
        case Atomic::inc:
        case Atomic::dec:
            return type == Type::u32;
        default:
            return size_of(type) > 2 && !is_floating(type);
    }
}
void reduce_into(u8* to, const u8* from, u32 bytes, Atomic op, Type type, bool flushes) {
    const u32 each = static_cast<u32>(size_of(type));
    for (u32 k = 0; k + each <= bytes; k += each) {
        u64 old = 0, x = 0;
        std::memcpy(&old, to + k, each);
        std::memcpy(&x, from + k, each);
        const u64 r = atomic_result(op, type, old, x, flushes);
        std::memcpy(to + k, &r, each);
    }
}

bool same_operands(Warp& w, const std::vector<Operand>& operands, int lane, int other) {
    return std::all_of(operands.begin(), operands.end(), [&](const Operand& o) {
        return (o.kind != Operand::Kind::reg || w.reg(o, lane) == w.reg(o, other)) &&
               same_operands(w, o.parts, lane, other);
    });
}

// [dst], [src], bytes; or [map, {coordinates}], [src]. flags: kTensor, kReduce. Lanes that store the same bytes to the
// same place make one store: CUTLASS lets a whole warp issue it.
Flow execute_bulk_store(Warp& w, const Instruction& in, LaneMask lanes) {
    for_lanes(lanes, [&](int lane) {
        const bool reduces = in.flags & kReduce;
        if (const int first = first_lane(lanes);
            !reduces && lane != first && same_operands(w, in.operands, lane, first))
            return;
        w.lane = lane;
        Block* block;
        u32 offset;
        shared_pointer(w, w.address(in.operands[1], lane), 1, block, offset);
        const Engine engine = next_engine(w);
        const Actor reader{engine.agent, engine.time, &engine.knows, true, false};
        const Atomic op = static_cast<Atomic>(in.variant);
        Type type = in.type;
        bool flushed = true;
        struct Run {
            u8* to;
            std::vector<u8> data;
        };
        std::vector<Run> runs;
        const auto store = [&](u64 address, u32 from, u32 bytes) {
            Actor writer{Cluster::writer_of(engine.agent), engine.time, &engine.knows, true, reduces};
            writer.sums = reduces && is_order_sensitive(op, type);
            u8* to = global_pointer(w, address, bytes, true);
            global_write(w, writer, address, bytes);
            const u8* source = block->shared.data() + from;
            runs.push_back({to, {source, source + bytes}});
        };
        if (in.flags & kTensor) {
            const TensorMap& map = tensor_map(w, w.address(in.operands[0], lane), in.space);
            i32 corner[5];
            read_corner(w, in.operands[0], map, lane, corner);
            const u32 bytes = map.box_bytes();
            check_aligned(w, offset, 128, "tensor copy source");
            if (offset + bytes > block->shared.size())
                fault(w, "the source of a tensor copy ends outside of the block's shared memory");
            shared_read(w, reader, *block, offset, bytes);
            if (reduces && !is_reduced(op, map.type)) fault(w, "there is no such reduction of the tensor map's type");
            type = map.type;
            flushed = flushes(map);
            for_rows_of_box(map, corner, [&](u32 at, u64 to, u32 run, bool inside) {
                if (inside) store(to, swizzled(offset + at, map.swizzle), run);
            });
        } else {
            const u32 bytes = w.reg32(in.operands[2].slot)[lane];
            const u64 to = w.address(in.operands[0], lane);
            check_bulk(w, to, offset, bytes);
            if (bytes == 0) return;
            if (offset + bytes > block->shared.size())
                fault(w, "the source of a bulk copy ends outside of the block's shared memory");
            shared_read(w, reader, *block, offset, bytes);
            store(to, offset, bytes);
        }
        w.stores.push_back({engine.agent, engine.time, w.store_group});
        cluster_of(w).stores.push_back({some_turns_later(w), &w, w.store_group, [=, runs = std::move(runs)] {
                                            for (const Run& r : runs) {
                                                const u32 bytes = static_cast<u32>(r.data.size());
                                                if (reduces)
                                                    reduce_into(r.to, r.data.data(), bytes, op, type, flushed);
                                                else
                                                    std::memcpy(r.to, r.data.data(), bytes);
                                            }
                                        }});
    });
    w.lane = -1;
    grid_of(w).effect();
    return Flow::next;
}

Flow execute_bulk_commit(Warp& w, const Instruction&, LaneMask) {
    ++w.store_group;
    return Flow::next;
}

// count: groups that may be pending; flags: 1 .read: sources may be reused; else destinations are written too.
Flow execute_bulk_wait(Warp& w, const Instruction& in, LaneMask) {
    const bool read_only = in.flags;
    const auto is_awaited = [&](u32 group) { return group + in.count < w.store_group; };
    const auto learn = [&](u32 agent, u32 time) { w.clock.own[agent] = std::max(w.clock.own[agent], time); };
    for (const PendingStore& s : w.stores) {
        if (!is_awaited(s.group)) continue;
        learn(s.engine, s.time);
        if (!read_only) learn(Cluster::writer_of(s.engine), s.time);
    }
    if (read_only) return Flow::next;
    std::erase_if(w.stores, [&](const PendingStore& s) { return is_awaited(s.group); });
    land_stores(cluster_of(w), [&](const BulkStore& s) { return s.by == &w && is_awaited(s.group); });
    return Flow::next;
}

void bind_bulk(Binder& b, bool reduces) {
    Instruction& in = b.in;
    b.ignore({"async", "bulk", "tile", "mbarrier::complete_tx::bytes", "1d", "2d", "3d", "4d", "5d", "L2::cache_hint",
              "noftz"});
    if (b.has("commit_group")) return b.run(execute_bulk_commit, Class::copy);
    if (b.has("wait_group")) {
        in.flags = b.has("read");
        in.count = static_cast<u32>(b.immediate(0));
        return b.run(execute_bulk_wait, Class::barrier);
    }
    if (b.has("prefetch")) {
        b.ignore({"L2", "global", "tensor"});
        return b.run(execute_nothing, Class::copy);
    }
    const bool tensor = b.has("tensor"), stores = b.has("bulk_group"), multicast = b.has("multicast::cluster");
    // .dst.src: what comes first says where to.
    const bool from_shared = !in.modifiers.empty() && !stores &&
                             std::find(in.modifiers.begin(), in.modifiers.end(), "global") == in.modifiers.end() &&
                             !tensor;
    b.ignore({"global", "shared::cta", "shared::cluster"});
    in.flags = (tensor ? kTensor : 0) | (multicast ? kMulticast : 0) | (reduces ? kReduce : 0);
    in.variant = from_shared;
    if (reduces) {
        const std::string name = b.one_of({"add", "min", "max", "and", "or", "xor", "inc", "dec"});
        if (name.empty() || !stores) b.unsupported("this reduction");
        in.variant = static_cast<u32>(*atomic_named(name));
        in.type = b.last_type();
    }
    for (std::size_t k = 0; k < b.operands(); ++k) {
        if (b.operand(k).kind == Operand::Kind::address) {
            b.address(k, Space::generic);
            for (std::size_t p = 1; p < in.operands[k].parts.size(); ++p)
                for (Operand& c : in.operands[k].parts[p].parts) b.materialize(c, false);
        } else {
            b.materialize(in.operands[k], in.operands[k].wide);
        }
    }
    b.run(stores ? execute_bulk_store : execute_bulk_load, Class::copy);
}

}  // namespace

void land_stores(Cluster& cluster, const std::function<bool(const BulkStore&)>& chosen) {
    std::vector<BulkStore> now, later;
    for (BulkStore& s : cluster.stores) (chosen(s) ? now : later).push_back(std::move(s));
    cluster.stores.swap(later);
    if (now.empty()) return;
    std::stable_sort(now.begin(), now.end(), [](const BulkStore& a, const BulkStore& b) { return a.due < b.due; });
    for (const BulkStore& s : now) s.land();
    cluster.grid->effect();
}

void bind_cp(Binder& b) {
    Instruction& in = b.in;
    const bool reduces = b.has("reduce");
    b.ignore({"async"});
    if (b.has("bulk")) return bind_bulk(b, reduces);
    if (reduces) b.unsupported("cp.reduce without .bulk");
    if (b.has("commit_group")) return b.run(execute_cp_commit, Class::copy);
    if (b.has("wait_group")) {
        in.count = static_cast<u32>(b.immediate(0));
        return b.run(execute_cp_wait, Class::barrier);
    }
    if (b.has("wait_all")) {
        in.flags = 1;
        return b.run(execute_cp_wait, Class::barrier);
    }
    if (b.has("mbarrier")) {
        b.ignore({"arrive", "shared", "shared::cta", "b64"});
        in.flags = b.has("noinc");
        b.address(0, Space::shared);
        return b.run(execute_cp_mbarrier_arrive, Class::barrier);
    }
    b.ignore({"ca", "cg", "shared", "shared::cta", "shared::cluster", "global", "L2::cache_hint", "L2::64B", "L2::128B",
              "L2::256B"});
    b.address(0, Space::shared);
    b.address(1, Space::global);
    in.count = static_cast<u32>(b.immediate(2));
    if (in.count != 4 && in.count != 8 && in.count != 16) b.unsupported("this size");
    for (std::size_t k = 3; k < b.operands(); ++k) {
        if (b.operand(k).kind == Operand::Kind::predicate) {
            b.predicate_source(k);
        } else if (k == 3 && !b.operand(k).wide) {
            in.src[0] = b.source(k, false);
            in.flags = 1;
        }  // else a cache policy
    }
    b.run(execute_cp_async, Class::copy);
}

}  // namespace emulator
