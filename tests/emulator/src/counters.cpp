#include "counters.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <sstream>

#include "linker.h"
#include "state.h"

namespace emulator {

void Counters::shared_access(u32 instruction, const u32* offsets, LaneMask lanes, u32 bytes) {
    const u32 passes = bytes <= 4 ? 1 : bytes / 4, lanes_per_pass = kLanes / passes;
    InstructionCounts& c = by_instruction[instruction];
    for (u32 pass = 0; pass < passes; ++pass) {
        std::vector<u32> words;
        for (u32 lane = pass * lanes_per_pass; lane < (pass + 1) * lanes_per_pass; ++lane)
            if (lanes >> lane & 1)
                for (u32 b = 0; b < std::max(bytes, 4u); b += 4) words.push_back((offsets[lane] + b) / 4);
        if (words.empty()) continue;
        std::sort(words.begin(), words.end());
        words.erase(std::unique(words.begin(), words.end()), words.end());
        u32 per_bank[32] = {}, most = 0;
        for (u32 word : words) most = std::max(most, ++per_bank[word % 32]);
        c.shared_wavefronts += most;
        c.shared_ideal += 1;
    }
}

void Counters::global_access(u32 instruction, const u64* addresses, LaneMask lanes, u32 bytes) {
    std::vector<u64> sectors;
    for_lanes(lanes, [&](int lane) {
        for (u64 s = addresses[lane] / 32; s <= (addresses[lane] + bytes - 1) / 32; ++s) sectors.push_back(s);
    });
    std::sort(sectors.begin(), sectors.end());
    sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
    InstructionCounts& c = by_instruction[instruction];
    c.global_sectors += sectors.size();
    c.global_ideal += (static_cast<u64>(std::popcount(lanes)) * bytes + 31) / 32;
}

namespace {

const char* class_name(int klass) {
    static const char* names[kClasses] = {"integer", "fp32",  "fp64",   "special", "convert", "move", "global",
                                          "shared",  "local", "tensor", "barrier", "branch",  "copy"};
    return names[klass];
}

std::string quoted(const std::string& s) {
    std::string out = "\"";
    for (char c : s) {
        if (c == '"' || c == '\\') out += '\\';
        out += c;
    }
    return out + "\"";
}

void add(InstructionCounts& to, const InstructionCounts& c) {
    to.issued += c.issued;
    to.lanes += c.lanes;
    to.divergent += c.divergent;
    to.shared_wavefronts += c.shared_wavefronts;
    to.shared_ideal += c.shared_ideal;
    to.global_sectors += c.global_sectors;
    to.global_ideal += c.global_ideal;
    to.tensor_macs += c.tensor_macs;
    to.waits += c.waits;
    for (int s = 0; s < kStalls; ++s) to.stalls[s] += c.stalls[s];
}

void write(std::ostringstream& out, const InstructionCounts& c) {
    out << "\"instructions\": " << c.issued << ", \"lanes\": " << c.lanes << ", \"divergent\": " << c.divergent
        << ", \"shared_wavefronts\": " << c.shared_wavefronts << ", \"shared_ideal\": " << c.shared_ideal
        << ", \"global_sectors\": " << c.global_sectors << ", \"global_ideal\": " << c.global_ideal
        << ", \"tensor_macs\": " << c.tensor_macs << ", \"waits\": " << c.waits;
}

void write_stalls(std::ostringstream& out, const InstructionCounts& c) {
    out << ", \"stalls\": {";
    bool first = true;
    for (int s = 0; s < kStalls; ++s)
        if (c.stalls[s]) {
            out << (first ? "" : ", ") << quoted(name_of(static_cast<Stall>(s))) << ": " << c.stalls[s];
            first = false;
        }
    out << "}";
}

}  // namespace

namespace {

// Where lines of the PTX come from: the source's line, and where the function that holds it was inlined, and so on
// outwards. A .loc names one of these steps; those of the steps around it stand before it.
std::map<int, std::string> inlined_places(const Module& module, const std::map<int, u64>& lines) {
    using Place = std::pair<int, int>;  // file, line
    std::map<Place, Place> around;
    std::map<int, std::string> places;
    Place now{};
    std::istringstream text(module.text);
    std::string row;
    for (int number = 1; std::getline(text, row); ++number) {
        Place inner, outer;
        const int found = std::sscanf(row.c_str(), " .loc %d %d %*d, function_name %*[^,], inlined_at %d %d",
                                      &inner.first, &inner.second, &outer.first, &outer.second);
        if (found >= 2) {
            now = inner;
            around[inner] = found == 4 ? outer : Place{};
        }
        if (!lines.contains(number)) continue;
        std::string& all = places[number];
        Place at = now;
        for (int steps = 0; at.second && steps < 16; ++steps, at = around[at])
            all += (steps ? ", inlined at " : "") + describe(module, {at.first, at.second});
    }
    return places;
}

}  // namespace

std::string synchronised(const Kernel& kernel, const Counters& counters) {
    std::map<int, u64> times;  // by line of the PTX
    for (std::size_t i = 0; i < kernel.code.size(); ++i)
        if (const u64 issued = counters.by_instruction[i].issued; issued && is_synchronising(kernel.code[i]))
            times[kernel.code[i].line] += issued;
    std::map<int, std::string> places = inlined_places(*kernel.module, times);
    std::string all;
    for (const auto& [line, count] : times)
        all += kernel.name + "\t" + std::to_string(line) + "\t" + std::to_string(count) + "\t" + places[line] + "\t" +
               line_of(*kernel.module, line) + "\n";
    return all;
}

const char* name_of(Stall stall) {
    static const char* names[kStalls] = {"issue slot", "ALU result",    "special result", "shared load", "global load",
                                         "mma result", "ALU busy",      "special busy",   "shared busy", "mma busy",
                                         "wgmma",      "wgmma queue",   "mbarrier",       "barrier",     "cp.async",
                                         "bulk store", "program order", "branch"};
    return names[static_cast<int>(stall)];
}

std::string to_json(const Kernel& kernel, const Counters& counters, u64 blocks, u32 threads,
                    const std::string& timing) {
    InstructionCounts total;
    u64 by_class[kClasses] = {};
    std::map<std::string, InstructionCounts> lines;
    for (std::size_t i = 0; i < kernel.code.size(); ++i) {
        const InstructionCounts& c = counters.by_instruction[i];
        if (c.issued == 0 && c.waits == 0) continue;
        add(total, c);
        by_class[static_cast<int>(kernel.code[i].klass)] += c.issued;
        std::string where = describe(*kernel.module, kernel.code[i].source);
        if (where.empty()) where = "PTX line " + std::to_string(kernel.code[i].line);
        add(lines[where], c);
    }
    std::ostringstream out;
    out << "{\"kernel\": " << quoted(demangled(kernel.name)) << ", \"blocks\": " << blocks
        << ", \"threads\": " << threads << ", ";
    write(out, total);
    if (!timing.empty()) {
        out << ", \"timing\": " << timing;
        write_stalls(out, total);
    }
    out << ", \"classes\": {";
    for (int k = 0; k < kClasses; ++k) out << (k ? ", " : "") << quoted(class_name(k)) << ": " << by_class[k];
    out << "}, \"lines\": [";
    bool first = true;
    for (const auto& [where, c] : lines) {
        out << (first ? "" : ", ") << "{\"line\": " << quoted(where) << ", ";
        write(out, c);
        if (!timing.empty()) write_stalls(out, c);
        out << "}";
        first = false;
    }
    out << "]}";
    return out.str();
}

}  // namespace emulator
