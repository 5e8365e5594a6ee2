// PTX as data: what the parser makes of a module's text, and what the linker makes of one of its kernels.
#pragma once
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "numbers.h"

namespace emulator {

constexpr int kLanes = 32;
using LaneMask = u32;
constexpr LaneMask kAllLanes = ~0u;

// A program that cannot be run: PTX that is malformed, or that the emulator lacks. The text names line and instruction.
struct ProgramError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
// A kernel that did something wrong while it ran: the report for the user.
struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Type : u8 {
    none,
    pred,
    b8,
    b16,
    b32,
    b64,
    b128,
    u8,
    u16,
    u32,
    u64,
    s8,
    s16,
    s32,
    s64,
    f16,
    bf16,
    f32,
    f64,
    f16x2,
    bf16x2,
    tf32,
    e4m3,
    e5m2,
    e4m3x2,
    e5m2x2
};
int size_of(Type type);  // bytes
bool is_signed(Type type);
bool is_floating(Type type);
Type type_named(const std::string& name);  // Type::none if it is no type

enum class Space : u8 { generic, global, shared, local, param, constant };

// Generic addresses: the window is in the top byte. Shared addresses carry 1 + the block's rank in its cluster in bits
// 24 to 31, or 0 for the block's own memory, so a shared::cta address is a shared::cluster address too, as in hardware.
constexpr u64 kSharedWindow = 1ull << 56, kLocalWindow = 2ull << 56, kParamWindow = 3ull << 56;
constexpr u32 kSharedOffsetMask = 0xffffff;

struct Operand {
    enum class Kind : u8 { none, reg, predicate, immediate, symbol, frame, vector, address, sink };
    Kind kind = Kind::none;
    bool wide = false;     // a register of 64 bits
    bool negated = false;  // !p
    bool float_literal = false;
    u32 slot = 0;                // register: byte offset of its 32 lanes in the register file; predicate: its index
    i32 paired_predicate = -1;   // q of p|q
    i64 value = 0;               // immediate; displacement of an address; offset in the function's frame
    std::string name;            // symbol
    std::vector<Operand> parts;  // a vector's elements; an address's base, then a tensor copy's coordinates
};

struct Warp;
struct Instruction;
// What the warp does after an instruction: goes on; tries it again at its next turn; took the branch; its lanes ended;
// entered a function; came back from one.
enum class Flow : u8 { next, wait, jump, exit, call, ret };
using Handler = Flow (*)(Warp&, const Instruction&, LaneMask);

// For the counters: which resource an instruction mainly uses.
enum class Class : u8 {
    integer,
    fp32,
    fp64,
    special,
    convert,
    move,
    global,
    shared,
    local,
    tensor,
    barrier,
    branch,
    copy
};
constexpr int kClasses = 13;

struct SourceLine {
    i32 file = 0, line = 0;
    i32 inlined_file = 0, inlined_line = 0;  // where the function that holds it was inlined
    bool operator==(const SourceLine&) const = default;
    auto operator<=>(const SourceLine&) const = default;
};

struct Instruction {
    // As written.
    std::string opcode;                  // "add"
    std::vector<std::string> modifiers;  // "rn", "f32"
    std::vector<Operand> operands;
    i32 guard = -1;  // @p
    bool guard_negated = false;
    i32 line = 0;  // of the PTX text
    SourceLine source;

    // As bound. What the fields from `variant` on mean is said by the instruction's own file.
    Handler execute = nullptr;
    Class klass = Class::integer;
    Type type = Type::none, type2 = Type::none;
    Space space = Space::generic;
    u32 dst = 0, src[4] = {0, 0, 0, 0};  // register-file offsets
    i32 predicate_dst = -1, predicate_src = -1;
    bool predicate_src_negated = false;
    u32 variant = 0, flags = 0, count = 0;
    u32 target = 0;                   // branch or call: index of an instruction
    u32 index = 0;                    // its own
    std::vector<u32> register_slots;  // every register it names
    // Those of them that some wgmma of the kernel accumulates in or takes A from: read or written; written.
    std::vector<u32> wgmma_touches, wgmma_writes;
};

struct Variable {
    std::string name;
    Space space = Space::global;
    u64 size = 0, align = 1;
    bool unsized = false;  // extern shared memory: its size comes with the launch
    std::vector<u8> initial;
    std::vector<std::pair<u64, std::string>> relocations;  // (offset, symbol): addresses of other variables
    void* address = nullptr;                               // global and constant: where it lives once it is used
};

struct Parameter {
    std::string name;
    u32 offset = 0, size = 0, align = 1;
};

struct RegisterDeclaration {
    bool wide = false, predicate = false;
};

// A function or kernel as parsed. Register operands hold the register's number in `registers`, branches the index of
// their target in `code`.
struct Function {
    std::string name;
    bool is_kernel = false, is_declaration = false;
    std::vector<Parameter> params, returns;
    u32 param_bytes = 0;
    u32 frame_bytes = 0;  // local variables, and parameters of the calls it makes; then its own if it is no kernel
    std::vector<RegisterDeclaration> registers;
    std::vector<Instruction> code;
    u32 cluster[3] = {0, 0, 0};  // .reqnctapercluster
    u32 max_threads = 0;         // .maxntid
    // Where its body stands in the module's text, after the { and with the }; read by parse_body.
    std::size_t body_begin = 0, body_end = 0;
    int body_line = 0;
    bool is_parsed = false;
};

enum class Special : u8 {
    tid_x,
    tid_y,
    tid_z,
    ntid_x,
    ntid_y,
    ntid_z,
    ctaid_x,
    ctaid_y,
    ctaid_z,
    nctaid_x,
    nctaid_y,
    nctaid_z,
    laneid,
    warpid,
    nwarpid,
    smid,
    nsmid,
    gridid,
    lanemask_eq,
    lanemask_lt,
    lanemask_le,
    lanemask_gt,
    lanemask_ge,
    clock,
    clock64,
    dynamic_smem_size,
    total_smem_size,
    cluster_ctarank,
    cluster_nctarank,
    cluster_ctaid_x,
    cluster_ctaid_y,
    cluster_ctaid_z,
    cluster_nctaid_x,
    cluster_nctaid_y,
    cluster_nctaid_z,
    clusterid_x,
    clusterid_y,
    clusterid_z,
    nclusterid_x,
    nclusterid_y,
    nclusterid_z,
    is_explicit_cluster
};
const std::map<std::string, Special>& special_registers();
bool is_wide(Special special);

struct Module;

// A kernel with the functions it calls, ready to run: one list of instructions, one register file, one local frame.
struct Kernel {
    std::string name;
    Module* module = nullptr;
    std::vector<Parameter> params;
    u32 param_bytes = 0;
    std::vector<Instruction> code;
    u32 register_bytes = 0, predicates = 0, frame_bytes = 0;
    std::vector<u8> initial_registers;              // immediates, one copy a lane
    std::vector<std::pair<u32, Special>> specials;  // (slot, what it holds)
    std::map<std::string, u64> shared_variables;    // offset of each
    u32 shared_static = 0, shared_dynamic_base = 0, shared_dynamic_align = 1;
    u32 cluster[3] = {0, 0, 0};
    u32 max_threads = 0;
    bool lets_next_begin = false;  // has a griddepcontrol.launch_dependents
};

struct Module {
    int target = 0;              // .target sm_NN
    bool arch_specific = false;  // sm_90a
    std::string text;
    std::map<int, std::string> files;
    std::map<std::string, Variable> variables;
    std::map<std::string, Function> functions;
    // Those linked so far; and without which synchronising instruction, by its line, if not 0.
    std::map<std::pair<std::string, int>, std::unique_ptr<Kernel>> kernels;
};

std::unique_ptr<Module> parse_module(const std::string& text);    // all but the functions' bodies
void parse_body(Module& module, Function& function);              // if it is not yet
Kernel& link_kernel(Module& module, const std::string& name);     // ProgramError if it cannot be
void* variable_address(Module& module, const std::string& name);  // of a global or constant; null if there is none

std::string line_of(const Module& module, int line);  // one line of the PTX text
std::string describe(const Module& module,
                     const SourceLine& source);  // "file.cu:12, inlined at other.cu:40"; may be empty
std::string demangled(const std::string& name);

}  // namespace emulator
