// Branches, ends, calls, and instructions that do nothing here.
// PTX ISA: 9.7.12 "Control Flow", 9.7.13.13 "griddepcontrol", 9.7.19 "Miscellaneous".
#include "control.h"

#include <cstdio>
#include <cstring>

#include "instructions.h"
#include "linker.h"
#include "memory.h"

namespace emulator {
namespace {

Flow execute_jump(Warp&, const Instruction&, LaneMask) {
    return Flow::jump;
}
Flow execute_return(Warp&, const Instruction&, LaneMask) {
    return Flow::ret;
}
Flow execute_trap(Warp& w, const Instruction&, LaneMask) {
    fault(w, "trap");
}
// .aligned: all lanes of the warp come to it. count: registers of a thread. What a kernel starts with is not known from
// PTX, but what its warps ask for together must fit into the multiprocessor.
// griddepcontrol.wait: what the launch before did is done, and seen ("griddepcontrol"). Every launch has ended before
// the next begins here, so there is nothing to wait for but the knowledge.
Flow execute_wait_for_launch(Warp& w, const Instruction&, LaneMask) {
    w.clock.others[kLaunchBefore] = {1};
    grid_of(w).waited = true;
    return Flow::next;
}

Flow execute_setmaxnreg(Warp& w, const Instruction& in, LaneMask lanes) {
    if (lanes != w.live) return Flow::wait;
    constexpr u32 kRegisters = 65536;
    w.asked_registers = in.count;
    u32 asked = 0;
    for (const Warp& other : w.block->warps) asked += kLanes * other.asked_registers;
    if (asked > kRegisters)
        fault(w, "the block's warps ask for " + std::to_string(asked) + " of " + std::to_string(kRegisters) +
                     " registers: setmaxnreg.inc would wait forever");
    return Flow::next;
}

// Frames are per lane; a call copies arguments from the caller's part of the frame to the callee's, a return the
// results.
void copy_in_frame(Warp& w, const Operand& copies, LaneMask lanes) {
    for_lanes(lanes, [&](int lane) {
        u8* frame = w.frame.data() + static_cast<std::size_t>(lane) * w.frame_bytes;
        for (std::size_t i = 0; i < copies.parts.size(); i += 3)
            std::memcpy(frame + copies.parts[i + 1].value, frame + copies.parts[i].value,
                        static_cast<std::size_t>(copies.parts[i + 2].value));
    });
}

Flow execute_call(Warp& w, const Instruction& in, LaneMask lanes) {
    copy_in_frame(w, in.operands[0], lanes);
    return Flow::call;
}

// printf's format and arguments, as vprintf gets them: arguments lie one after the other, aligned to their size.
std::string formatted(Warp& w, int lane, u64 format_address, u64 arguments_address) {
    const char* format = reinterpret_cast<const char*>(format_address);
    const u8* arguments = nullptr;
    if (arguments_address)
        arguments = space_of(arguments_address) == Space::local ? local_pointer(w, lane, arguments_address, 0)
                                                                : reinterpret_cast<const u8*>(arguments_address);
    std::string out;
    std::size_t at = 0;
    const auto next = [&](auto& value) {
        at = (at + sizeof value - 1) / sizeof value * sizeof value;
        std::memcpy(&value, arguments + at, sizeof value);
        at += sizeof value;
    };
    for (const char* c = format; *c; ++c) {
        if (*c != '%') {
            out += *c;
            continue;
        }
        std::string spec = "%";
        while (c[1] && !std::isalpha(static_cast<unsigned char>(c[1])) && c[1] != '%') spec += *++c;
        bool is_long = false;
        while (c[1] == 'l' || c[1] == 'z' || c[1] == 'h') is_long |= *++c != 'h';
        const char kind = *++c;
        char text[256] = "";
        if (kind == '%') {
            out += '%';
        } else if (std::strchr("fgeaFGEA", kind)) {
            double value;
            next(value);
            std::snprintf(text, sizeof text, (spec + kind).c_str(), value);
        } else if (kind == 's' || kind == 'p') {
            u64 value;
            next(value);
            if (kind == 's')
                out += reinterpret_cast<const char*>(value);
            else
                std::snprintf(text, sizeof text, "%#llx", static_cast<unsigned long long>(value));
        } else if (is_long) {
            u64 value;
            next(value);
            std::snprintf(text, sizeof text, (spec + "ll" + kind).c_str(), static_cast<unsigned long long>(value));
        } else {
            u32 value;
            next(value);
            std::snprintf(text, sizeof text, (spec + kind).c_str(), value);
        }
        out += text;
    }
    return out;
}

u64 frame_value(Warp& w, int lane, const Operand& parameter) {
    u64 value;
    std::memcpy(&value, w.frame.data() + static_cast<std::size_t>(lane) * w.frame_bytes + parameter.value, 8);
    return value;
}

Flow execute_printf(Warp& w, const Instruction& in, LaneMask lanes) {
    const std::vector<Operand>& arguments = in.operands.back().parts;
    for_lanes(lanes, [&](int lane) {
        const std::string text =
            formatted(w, lane, frame_value(w, lane, arguments.at(0)), frame_value(w, lane, arguments.at(1)));
        std::fputs(text.c_str(), stdout);
    });
    return Flow::next;
}

Flow execute_assert_failed(Warp& w, const Instruction& in, LaneMask lanes) {
    const std::vector<Operand>& arguments = in.operands.back().parts;
    w.lane = first_lane(lanes);
    fault(w,
          std::string("assertion failed: ") + reinterpret_cast<const char*>(frame_value(w, w.lane, arguments.at(0))));
}

}  // namespace

Flow execute_nothing(Warp&, const Instruction&, LaneMask) {
    return Flow::next;
}
Flow execute_exit(Warp&, const Instruction&, LaneMask) {
    return Flow::exit;
}
Flow execute_set_predicate(Warp& w, const Instruction& in, LaneMask lanes) {
    w.set_predicate(in.predicate_dst, lanes, kAllLanes);
    return Flow::next;
}

void copy_results(Warp& w, const Instruction& call, LaneMask lanes) {
    copy_in_frame(w, call.operands[1], lanes);
}

bool is_builtin_function(const std::string& name) {
    return name == "vprintf" || name == "__assertfail";
}

void bind_bra(Binder& b) {
    b.ignore({"uni"});
    b.run(execute_jump, Class::branch);
}
void bind_ret(Binder& b) {
    b.ignore({"uni"});
    b.run(execute_return, Class::branch);
}
void bind_exit(Binder& b) {
    b.run(execute_exit, Class::branch);
}
void bind_trap(Binder& b) {
    b.run(execute_trap, Class::branch);
}

void bind_call(Binder& b) {
    b.ignore({"uni"});
    for (const Operand& o : b.in.operands)
        if (o.kind == Operand::Kind::symbol && is_builtin_function(o.name))
            return b.run(o.name == "vprintf" ? execute_printf : execute_assert_failed, Class::branch);
    b.run(execute_call, Class::branch);
}

void bind_setmaxnreg(Binder& b) {
    if (b.one_of({"inc", "dec"}).empty()) b.unsupported("neither inc nor dec");
    b.ignore({"sync", "aligned", "u32"});
    const i64 count = b.immediate(0);
    if (count < 24 || count > 256 || count % 8) b.unsupported("the count is no multiple of 8 from 24 to 256");
    b.in.count = static_cast<u32>(count);
    b.run(execute_setmaxnreg, Class::move);
}

void bind_griddepcontrol(Binder& b) {
    if (b.has("wait")) return b.run(execute_wait_for_launch, Class::barrier);
    b.ignore({"launch_dependents"});
    b.run(execute_nothing, Class::move);
}

void bind_nothing(Binder& b) {  // hints, waits for time to pass
    b.ignore({"global", "L1", "L2", "uni", "u32", "tensormap", "const", "param", "L2::128B", "L2::evict_last",
              "L2::evict_normal", "L1::evict_last"});
    b.run(execute_nothing, Class::move);
}

}  // namespace emulator
