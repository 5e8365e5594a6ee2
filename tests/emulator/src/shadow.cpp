// Races, uninitialised reads and missing proxy fences, from shadow memory: per word the last write and the reads since.
// Two accesses race if they overlap, one writes, not both are strong, and the later actor does not know of the earlier.
#include "shadow.h"

#include <algorithm>
#include <cstring>

#include "memory.h"
#include "options.h"

namespace emulator {
namespace {

// The bytes of word `word` that [offset, offset + bytes) covers.
u8 covered(u32 word, u32 offset, u32 bytes) {
    const u32 first = std::max(offset, word * 4), last = std::min(offset + bytes, word * 4 + 4);
    return static_cast<u8>(((1u << (last - first)) - 1) << (first - word * 4));
}

// Whether the actor knows of the access, or did it itself. What an asynchronous agent did at another time is another
// operation.
inline bool knows_of(u32 my_cluster, const Actor& a, const Access& earlier) {
    if (earlier.cluster != my_cluster) return a.knows->knows(my_cluster, earlier.cluster, earlier.agent, earlier.time);
    return (earlier.agent == a.agent && (!a.asynchronous || earlier.time == a.time)) ||
           (earlier.agent < a.knows->own.size() && a.knows->own[earlier.agent] >= earlier.time);
}

inline bool unordered(Warp& w, const Actor& a, const Access& earlier, u8 bytes) {
    if (earlier.time == 0 || !(earlier.bytes & bytes)) return false;
    if (earlier.strong && a.strong && !(earlier.sums && a.sums && options().check_order)) return false;
    return !knows_of(cluster_number(w), a, earlier);
}

// What two writes with no order between them do, in words.
std::string both_write(Warp& w, const Actor& a, const Access& earlier, const std::string& place, const char* order) {
    if (a.strong && earlier.strong)
        return "race: adds to " + place + ", as does " + describe(grid_of(w), earlier) + order +
               " (each addition is whole, but the bits of the sum depend on which comes first)";
    return "race: writes " + place + ", also written by " + describe(grid_of(w), earlier) + order +
           " (a race even if both write the same value)";
}

inline Access record(Warp& w, const Actor& a, u8 bytes) {
    Access r;
    r.cluster = cluster_number(w);
    r.time = a.time;
    r.instruction = w.current ? w.current->index : 0;
    r.agent = static_cast<u16>(a.agent);
    r.bytes = bytes;
    r.strong = a.strong;
    r.asynchronous = a.asynchronous;
    r.sums = a.sums;
    return r;
}

// Keeps a read: in the place of one that it makes superfluous, else in a free place, else in a new one.
template <int Few>
void keep_read(Warp& w, const Actor& a, Reads<Few>& reads, u8 bytes) {
    const u32 mine = cluster_number(w);
    for (Access& r : reads.few)  // most often it has read the same bytes before
        if (r.time != 0 && r.agent == a.agent && r.cluster == mine && !(r.bytes & ~bytes)) {
            r = record(w, a, bytes);
            return;
        }
    Access *own = nullptr, *free = nullptr, *known = nullptr;
    reads.for_each([&](Access& r) {
        if (r.time == 0)
            free = &r;
        else if (r.cluster == mine && r.agent == a.agent && (r.time == a.time || !(r.bytes & ~bytes)))
            own = &r;
        else if (!free && !known && !(r.bytes & ~bytes) && a.knows->knows(mine, r.cluster, r.agent, r.time))
            known = &r;
    });
    if (own) bytes |= own->bytes;
    Access* place = own ? own : free ? free : known;
    if (place) {
        *place = record(w, a, bytes);
        return;
    }
    if (!reads.more) reads.more = std::make_unique<std::vector<Access>>();
    if (reads.more->size() < Reads<Few>::kMost) reads.more->push_back(record(w, a, bytes));
}

template <int Few>
void forget_reads(Reads<Few>& reads, u8 bytes) {
    reads.for_each([&](Access& r) {
        if ((r.bytes &= static_cast<u8>(~bytes)) == 0) r.time = 0;
    });
    if (!reads.more) return;
    std::erase_if(*reads.more, [](const Access& r) { return r.time == 0; });
    if (reads.more->empty()) reads.more.reset();
}

std::string name_bytes(u32 offset, u8 bytes) {
    return "shared byte " + std::to_string(offset + static_cast<u32>(std::countr_zero(static_cast<u32>(bytes))));
}

std::string global_place(u64 address) {
    char text[40];
    std::snprintf(text, sizeof text, "global byte %#llx", static_cast<unsigned long long>(address));
    return text;
}

// Global shadow memory: pages of cells, made when first touched.
constexpr u64 kPageBytes = 4096;
struct Page {
    GlobalCell cells[kPageBytes / 4];
};
std::unordered_map<u64, std::unique_ptr<Page>>& pages() {
    static std::unordered_map<u64, std::unique_ptr<Page>> p;
    return p;
}
GlobalCell& global_cell(Warp& w, u64 word) {
    static struct {
        u64 number = ~0ull;
        Page* page = nullptr;
    } lately[64];  // pages are never freed
    const u64 number = word / (kPageBytes / 4);
    auto& place = lately[number % std::size(lately)];
    if (place.number != number) {
        auto& page = pages()[number];
        if (!page) page = std::make_unique<Page>();
        place = {number, page.get()};
    }
    GlobalCell& cell = place.page->cells[word % (kPageBytes / 4)];
    const Grid& grid = grid_of(w);
    if (cell.launch == grid.launch) return cell;
    if (grid.before && cell.launch == grid.launch - 1) {
        // What the launch before read is done once this one begins, unless that let it begin earlier.
        if (!grid.before->lets_next_begin) cell.reads = {};
        const auto earlier = [](Access& a) {
            if (a.time) a.cluster = kLaunchBefore, a.agent = 0, a.time = 1, a.strong = 0;
        };
        earlier(cell.write);
        cell.reads.for_each(earlier);
    } else {
        cell = GlobalCell{};
    }
    cell.launch = grid.launch;
    return cell;
}

// What the generic proxy wrote in this launch, asynchronous operations see after a proxy fence alone.
void check_global_proxy(Warp& w, const Actor& a, const Access& write, u64 address, u8 bytes) {
    if (!a.asynchronous || write.asynchronous || write.time == 0 || !(write.bytes & bytes)) return;
    if (!options().check_proxy || write.cluster == kLaunchBefore) return;
    const u32 mine = cluster_number(w);
    const auto fence = grid_of(w).proxy_fences.find({write.cluster, write.agent});
    const bool by_writer = fence != grid_of(w).proxy_fences.end() && fence->second > write.time;
    const bool is_own = write.cluster == mine && write.agent == w.agent;
    const bool by_reader = !is_own && w.global_proxy_fenced.knows(mine, write.cluster, write.agent, write.time);
    if (!by_writer && !by_reader)
        fault(w, "the asynchronous proxy touches " + global_place(address) + ", written by " +
                     describe(grid_of(w), write) + " with no fence.proxy.async after it");
}

}  // namespace

Actor actor(Warp& w, bool strong, bool sums) {
    return {w.agent, w.clock.own[w.agent], &w.clock, false, strong, sums};
}

void shared_read(Warp& w, const Actor& a, Block& block, u32 offset, u32 bytes) {
    const Options& o = options();
    for (u32 word = offset / 4; word <= (offset + bytes - 1) / 4; ++word) {
        SharedCell& cell = block.cells[word];
        const u8 mine = covered(word, offset, bytes);
        if (o.check_init && (cell.initialised & mine) != mine)
            fault(w, "reads " + name_bytes(word * 4, mine & ~cell.initialised) + ", which nothing has written");
        if (o.check_async && (cell.in_flight & mine))
            fault(w, "reads " + name_bytes(word * 4, cell.in_flight & mine) +
                         " while an asynchronous copy to it is in flight, issued by " +
                         describe(grid_of(w), cell.write));
        if (o.check_races && unordered(w, a, cell.write, mine))
            fault(w, "race: reads " + name_bytes(word * 4, mine) + ", written by " + describe(grid_of(w), cell.write) +
                         " with no synchronisation between");
        if (o.check_warp_races && !a.asynchronous && w.lane >= 0 && cell.lane != 0xff && cell.lane != w.lane &&
            cell.write.agent == w.agent && cell.epoch == w.epoch && (cell.write.bytes & mine) && !a.strong)
            fault(w, "race: lane " + std::to_string(w.lane) + " reads " + name_bytes(word * 4, mine) +
                         ", written by lane " + std::to_string(cell.lane) +
                         " of its warp with no synchronisation of the warp between, at " +
                         position(*grid_of(w).kernel, cell.write.instruction));
        if (o.check_proxy && a.asynchronous && cell.write.time && !cell.write.asynchronous &&
            (cell.write.bytes & mine)) {
            Warp* writer = block.cluster->warp_of_agent(cell.write.agent);
            const bool by_writer = writer && writer->proxy_fence_time > cell.write.time;
            const bool by_reader = writer != &w && w.proxy_fenced.knows(0, 0, cell.write.agent, cell.write.time);
            if (writer && !by_writer && !by_reader)
                fault(w, "the asynchronous proxy reads " + name_bytes(word * 4, mine) + ", written by " +
                             describe(grid_of(w), cell.write) + " with no fence.proxy.async after it");
        }
        if (o.check_races) keep_read(w, a, cell.reads, mine);
    }
}

void shared_write(Warp& w, const Actor& a, Block& block, u32 offset, u32 bytes) {
    const Options& o = options();
    for (u32 word = offset / 4; word <= (offset + bytes - 1) / 4; ++word) {
        SharedCell& cell = block.cells[word];
        const u8 mine = covered(word, offset, bytes);
        if (o.check_async && (cell.in_flight & mine) && !a.asynchronous)
            fault(w, "writes " + name_bytes(word * 4, cell.in_flight & mine) +
                         " while an asynchronous copy to it is in flight, issued by " +
                         describe(grid_of(w), cell.write));
        if (o.check_races) {
            if (unordered(w, a, cell.write, mine))
                fault(w, both_write(w, a, cell.write, name_bytes(word * 4, mine), " with no synchronisation between"));
            cell.reads.for_each([&](const Access& r) {
                if (unordered(w, a, r, mine))
                    fault(w, "race: writes " + name_bytes(word * 4, mine) + " while " + describe(grid_of(w), r) +
                                 " may still read it");
            });
        }
        // Writes of one warp at one time add up; others replace what was known of the word.
        const u8 lane = a.asynchronous || w.lane < 0 ? 0xff : static_cast<u8>(w.lane);
        const bool same = cell.write.agent == a.agent && cell.write.time == a.time && cell.epoch == w.epoch;
        const u8 before = same ? cell.write.bytes : 0;
        cell.write = record(w, a, mine | before);
        cell.lane = before && cell.lane != lane ? 0xff : lane;
        cell.epoch = w.epoch;
        cell.initialised |= mine;
        cell.barrier = 0;
        cell.laid = 0;
        forget_reads(cell.reads, mine);
    }
}

void set_in_flight(Block& block, u32 offset, u32 bytes, bool in_flight) {
    for (u32 word = offset / 4; word <= (offset + bytes - 1) / 4; ++word) {
        const u8 mine = covered(word, offset, bytes);
        u8& flags = block.cells[word].in_flight;
        flags = in_flight ? flags | mine : flags & static_cast<u8>(~mine);
    }
}

void global_read(Warp& w, const Actor& a, u64 address, u32 bytes) {
    const Grid& grid = grid_of(w);
    const bool overlaps = grid.before || grid.kernel->lets_next_begin;
    if (!options().check_global || (!overlaps && is_read_only(address))) return;
    for (u64 word = address / 4; word <= (address + bytes - 1) / 4; ++word) {
        GlobalCell& cell = global_cell(w, word);
        const u64 first = std::max(address, word * 4), last = std::min(address + bytes, word * 4 + 4);
        const u8 mine = static_cast<u8>(((1u << (last - first)) - 1) << (first - word * 4));
        if (unordered(w, a, cell.write, mine))
            fault(w, "race: reads " + global_place(first) + ", written by " + describe(grid_of(w), cell.write) +
                         " with no order between them");
        check_global_proxy(w, a, cell.write, first, mine);
        keep_read(w, a, cell.reads, mine);
    }
}

void global_write(Warp& w, const Actor& a, u64 address, u32 bytes) {
    if (!options().check_global) return;
    for (u64 word = address / 4; word <= (address + bytes - 1) / 4; ++word) {
        GlobalCell& cell = global_cell(w, word);
        const u64 first = std::max(address, word * 4), last = std::min(address + bytes, word * 4 + 4);
        const u8 mine = static_cast<u8>(((1u << (last - first)) - 1) << (first - word * 4));
        if (unordered(w, a, cell.write, mine))
            fault(w, both_write(w, a, cell.write, global_place(first), " with no order between them"));
        check_global_proxy(w, a, cell.write, first, mine);
        cell.reads.for_each([&](const Access& r) {
            if (unordered(w, a, r, mine))
                fault(w, "race: writes " + global_place(first) + " while " + describe(grid_of(w), r) +
                             " may still read it");
        });
        const bool same =
            cell.write.agent == a.agent && cell.write.time == a.time && cell.write.cluster == cluster_number(w);
        const u8 before = same ? cell.write.bytes : 0;
        cell.write = record(w, a, mine | before);
        forget_reads(cell.reads, mine);
    }
}

void forget_global(u64 address, u64 bytes) {
    for (u64 page = address / kPageBytes; page <= (address + bytes) / kPageBytes; ++page) {
        const auto found = pages().find(page);
        if (found == pages().end()) continue;
        for (GlobalCell& cell : found->second->cells) cell.launch = 0;
    }
}

}  // namespace emulator
