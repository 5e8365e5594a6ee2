#include "linker.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <set>

#include "control.h"
#include "matrix.h"
#include "memory.h"
#include "options.h"

namespace emulator {
namespace {

u64 align_up(u64 x, u64 to) {
    return (x + to - 1) / to * to;
}

}  // namespace

// Of this kernel, for mutation (options.h); 0: none.
int line_to_drop(const std::string& kernel) {
    const Options& o = options();
    return o.drop_kernel.empty() || o.drop_kernel == kernel ? o.drop_line : 0;
}

class Linker {
  public:
    Linker(Module& module, Kernel& kernel) : module_(module), kernel_(kernel) {}
    void link(const std::string& name);

    u32 new_register(bool wide) {
        const u32 bytes = kLanes * (wide ? 8 : 4);
        kernel_.register_bytes = static_cast<u32>(align_up(kernel_.register_bytes, bytes));
        const u32 slot = kernel_.register_bytes;
        kernel_.register_bytes += bytes;
        return slot;
    }
    i32 new_predicate() { return static_cast<i32>(kernel_.predicates++); }
    u32 constant(u64 value, bool wide) {
        if (!wide) value = static_cast<u32>(value);
        const auto [entry, is_new] = constants_.try_emplace({value, wide}, 0u);
        if (is_new) entry->second = new_register(wide);
        return entry->second;
    }
    u32 special(const std::string& name) {
        const Special s = special_registers().at(name);
        const auto [entry, is_new] = specials_.try_emplace(s, 0u);
        if (is_new) {
            entry->second = new_register(is_wide(s));
            kernel_.specials.push_back({entry->second, s});
        }
        return entry->second;
    }
    u64 symbol(const Operand& o, int line);
    // A parameter or result of the function being bound, if that is no kernel: it lies in the frame.
    bool is_function_parameter(const Operand& o) const;

  private:
    // Where a function's registers, predicates, frame and code lie within the kernel's.
    struct Placed {
        const Function* function;
        u32 first_instruction = 0, frame = 0;
        i32 first_predicate = 0;
        std::vector<u32> slots;  // register number -> slot, or predicate index
    };

    void collect(const std::string& name, std::vector<std::string>& path);
    void place_shared();
    void place(const Function& f);
    void resolve(Operand& o, const Placed& where);
    void resolve_call(Instruction& in);

    Module& module_;
    Kernel& kernel_;
    std::vector<const Function*> order_;
    std::map<std::string, Placed> placed_;
    const Placed* current_ = nullptr;
    std::map<std::pair<u64, bool>, u32> constants_;
    std::map<Special, u32> specials_;
};

// The functions that `name` reaches, callees after callers. A path that comes back to itself is recursion.
void Linker::collect(const std::string& name, std::vector<std::string>& path) {
    Function& f = module_.functions.at(name);
    parse_body(module_, f);
    if (std::find(path.begin(), path.end(), name) != path.end())
        throw ProgramError(demangled(name) + " calls itself: recursion is not emulated");
    if (std::find(order_.begin(), order_.end(), &f) != order_.end()) return;
    order_.push_back(&f);
    path.push_back(name);
    for (const Instruction& in : f.code)
        if (in.opcode == "call")
            for (const Operand& o : in.operands)
                if (o.kind == Operand::Kind::symbol && !is_builtin_function(o.name)) {
                    const auto callee = module_.functions.find(o.name);
                    if (callee == module_.functions.end() || callee->second.is_declaration)
                        throw ProgramError("PTX line " + std::to_string(in.line) + ": call of " + demangled(o.name) +
                                           ", which the module does not define");
                    collect(o.name, path);
                }
    path.pop_back();
}

// Shared memory: the variables that these functions name, then the dynamic part.
void Linker::place_shared() {
    std::set<std::string> names;
    const std::function<void(const Operand&)> visit = [&](const Operand& o) {
        if (o.kind == Operand::Kind::symbol) names.insert(o.name);
        for (const Operand& p : o.parts) visit(p);
    };
    for (const Function* f : order_)
        for (const Instruction& in : f->code)
            for (const Operand& o : in.operands) visit(o);
    u64 bytes = 0;
    std::vector<const Variable*> dynamic;
    for (const std::string& name : names) {
        const auto found = module_.variables.find(name);
        if (found == module_.variables.end() || found->second.space != Space::shared) continue;
        const Variable& v = found->second;
        if (v.unsized) {
            dynamic.push_back(&v);
            kernel_.shared_dynamic_align = std::max(kernel_.shared_dynamic_align, static_cast<u32>(v.align));
            continue;
        }
        bytes = align_up(bytes, v.align);
        kernel_.shared_variables[name] = bytes;
        bytes += v.size;
    }
    kernel_.shared_static = static_cast<u32>(bytes);
    // With the check on, the dynamic part has the alignment that was declared and no more: an odd multiple of it.
    const u32 align = kernel_.shared_dynamic_align;
    u64 base = align_up(bytes, 1024);
    if (options().check_alignment && align < 1024 && !dynamic.empty()) base += align;
    kernel_.shared_dynamic_base = static_cast<u32>(base);
    for (const Variable* v : dynamic) kernel_.shared_variables[v->name] = base;
}

void Linker::place(const Function& f) {
    Placed p;
    p.function = &f;
    kernel_.frame_bytes = static_cast<u32>(align_up(kernel_.frame_bytes, 16));
    p.frame = kernel_.frame_bytes;
    kernel_.frame_bytes += f.frame_bytes;
    for (const RegisterDeclaration& r : f.registers)
        p.slots.push_back(r.predicate ? static_cast<u32>(new_predicate()) : new_register(r.wide));
    p.first_instruction = static_cast<u32>(kernel_.code.size());
    kernel_.code.insert(kernel_.code.end(), f.code.begin(), f.code.end());
    placed_[f.name] = std::move(p);
}

u64 Linker::symbol(const Operand& o, int line) {
    if (o.name == "WARP_SZ") return kLanes;
    if (const auto s = kernel_.shared_variables.find(o.name); s != kernel_.shared_variables.end())
        return s->second + static_cast<u64>(o.value);
    const Function& f = *current_->function;
    for (const auto* list : {&f.params, &f.returns})
        for (const Parameter& p : *list)
            if (p.name == o.name) return p.offset + (f.is_kernel ? 0 : current_->frame) + static_cast<u64>(o.value);
    if (void* address = variable_address(module_, o.name))
        return reinterpret_cast<u64>(address) + static_cast<u64>(o.value);
    throw ProgramError("PTX line " + std::to_string(line) + ": symbol " + o.name + " is not known");
}

bool Linker::is_function_parameter(const Operand& o) const {
    const Function& f = *current_->function;
    if (o.kind != Operand::Kind::symbol || f.is_kernel) return false;
    const auto named = [&](const Parameter& p) { return p.name == o.name; };
    return std::any_of(f.params.begin(), f.params.end(), named) ||
           std::any_of(f.returns.begin(), f.returns.end(), named);
}

void Linker::resolve(Operand& o, const Placed& where) {
    if (o.kind == Operand::Kind::reg || o.kind == Operand::Kind::predicate) o.slot = where.slots[o.slot];
    if (o.paired_predicate >= 0)
        o.paired_predicate = static_cast<i32>(where.slots[static_cast<u32>(o.paired_predicate)]);
    if (o.kind == Operand::Kind::frame) o.value += where.frame;
    for (Operand& p : o.parts) resolve(p, where);
}

// call (retval), f, (a, b): the caller's and the callee's parameters are frame slots; the handler copies between them.
// operands become pairs of frame offsets: [0] arguments {from, to, bytes}..., [1] results {from, to, bytes}...
void Linker::resolve_call(Instruction& in) {
    std::string name;
    Operand arguments, results;
    bool name_seen = false;
    for (const Operand& o : in.operands) {
        if (o.kind == Operand::Kind::symbol)
            name = o.name, name_seen = true;
        else if (o.kind == Operand::Kind::vector)
            (name_seen ? arguments : results) = o;
    }
    if (is_builtin_function(name)) return;
    const Placed& callee = placed_.at(name);
    Operand in_copies, out_copies;
    const auto copies = [&](const Operand& list, const std::vector<Parameter>& params, bool into) {
        Operand all;
        for (std::size_t i = 0; i < list.parts.size(); ++i) {
            const i64 mine = list.parts[i].value, its = params.at(i).offset + callee.frame;
            for (i64 v : {into ? mine : its, into ? its : mine, static_cast<i64>(params[i].size)}) {
                Operand n;
                n.value = v;
                all.parts.push_back(n);
            }
        }
        return all;
    };
    in.operands = {copies(arguments, callee.function->params, true), copies(results, callee.function->returns, false)};
    in.target = callee.first_instruction;
}

void Linker::link(const std::string& name) {
    std::vector<std::string> path;
    collect(name, path);
    const Function& entry = *order_.front();
    kernel_.params = entry.params;
    kernel_.param_bytes = entry.param_bytes;
    std::copy(entry.cluster, entry.cluster + 3, kernel_.cluster);
    kernel_.max_threads = entry.max_threads;
    place_shared();
    for (const Function* f : order_) place(*f);

    for (const Function* f : order_) {
        current_ = &placed_.at(f->name);
        for (std::size_t i = 0; i < f->code.size(); ++i) {
            Instruction& in = kernel_.code[current_->first_instruction + i];
            if (in.guard >= 0) in.guard = static_cast<i32>(current_->slots[static_cast<u32>(in.guard)]);
            for (Operand& o : in.operands) resolve(o, *current_);
            if (in.opcode == "bra") in.target += current_->first_instruction;
            if (in.opcode == "call") resolve_call(in);
            Binder binder(*this, in);
            const Bind bind = bind_of(in.opcode);
            if (!bind) binder.unsupported("the instruction is not in the table");
            bind(binder);
            binder.finish();
            if (in.opcode == "ret" && f->is_kernel) in.execute = execute_exit;
            if (in.line != line_to_drop(kernel_.name) || !is_synchronising(in)) continue;
            if (orders(in))
                make_relaxed(in);
            else
                in.execute = in.predicate_dst >= 0 ? execute_set_predicate : execute_nothing;
        }
    }

    for (std::size_t i = 0; i < kernel_.code.size(); ++i) {
        const Instruction& in = kernel_.code[i];
        kernel_.code[i].index = static_cast<u32>(i);
        kernel_.lets_next_begin |=
            in.opcode == "griddepcontrol" && in.modifiers == std::vector<std::string>{"launch_dependents"};
    }
    find_wgmma_registers(kernel_);
    kernel_.initial_registers.assign(kernel_.register_bytes, 0);
    for (const auto& [key, slot] : constants_)
        for (int lane = 0; lane < kLanes; ++lane) {
            u8* at = &kernel_.initial_registers[slot + static_cast<u32>(lane) * (key.second ? 8 : 4)];
            std::memcpy(at, &key.first, key.second ? 8 : 4);
        }
}

Kernel& link_kernel(Module& module, const std::string& name) {
    auto& slot = module.kernels[{name, line_to_drop(name)}];
    if (slot) return *slot;
    const auto f = module.functions.find(name);
    if (f == module.functions.end() || !f->second.is_kernel) throw ProgramError("the module has no kernel " + name);
    auto kernel = std::make_unique<Kernel>();
    kernel->name = name;
    kernel->module = &module;
    Linker(module, *kernel).link(name);
    slot = std::move(kernel);
    return *slot;
}

void* variable_address(Module& module, const std::string& name) {
    const auto found = module.variables.find(name);
    if (found == module.variables.end()) return nullptr;
    Variable& v = found->second;
    if (v.space != Space::global && v.space != Space::constant) return nullptr;
    if (v.address) return v.address;
    v.address = device_allocate(v.size + 16);
    std::memset(v.address, 0, v.size + 16);
    if (!v.initial.empty()) std::memcpy(v.address, v.initial.data(), v.initial.size());
    for (const auto& [offset, symbol] : v.relocations) {
        void* target = variable_address(module, symbol);
        if (!target)
            throw ProgramError("variable " + name + " holds the address of " + symbol + ", which is not emulated");
        std::memcpy(static_cast<u8*>(v.address) + offset, &target, sizeof target);
    }
    return v.address;
}

bool is_synchronising(const Instruction& in) {
    const auto has = [&](const char* m) {
        return std::find(in.modifiers.begin(), in.modifiers.end(), m) != in.modifiers.end();
    };
    if (in.opcode == "bar" || in.opcode == "barrier" || in.opcode == "fence" || in.opcode == "membar") return true;
    if (in.opcode == "mbarrier") return has("arrive") || has("try_wait") || has("test_wait");
    if (in.opcode == "cp") return has("wait_group") || has("wait_all") || (has("mbarrier") && has("arrive"));
    if (in.opcode == "griddepcontrol") return has("wait");
    if (orders(in)) return true;
    return in.opcode == "wgmma" && (has("wait_group") || has("fence"));
}

// ---- Binder

bool Binder::has(const std::string& modifier) {
    bool found = false;
    for (std::size_t i = 0; i < in.modifiers.size(); ++i)
        if (in.modifiers[i] == modifier) understood_ |= 1ull << i, found = true;
    return found;
}

bool Binder::has_prefix(const std::string& prefix) {
    bool found = false;
    for (std::size_t i = 0; i < in.modifiers.size(); ++i)
        if (in.modifiers[i].starts_with(prefix)) understood_ |= 1ull << i, found = true;
    return found;
}

void Binder::ignore(std::initializer_list<const char*> modifiers) {
    for (const char* m : modifiers) has(m);
}

Type Binder::type(std::size_t k) {
    for (std::size_t i = 0; i < in.modifiers.size(); ++i) {
        const Type t = type_named(in.modifiers[i]);
        if (t == Type::none) continue;
        understood_ |= 1ull << i;
        if (k-- == 0) return t;
    }
    return Type::none;
}

Type Binder::last_type() {
    Type last = Type::none;
    for (std::size_t k = 0; type(k) != Type::none; ++k) last = type(k);
    return last;
}

std::string Binder::one_of(std::initializer_list<const char*> modifiers, const std::string& otherwise) {
    std::string found = otherwise;
    for (const char* m : modifiers)
        if (has(m)) found = m;
    return found;
}

const Operand& Binder::operand(std::size_t k) {
    if (k >= in.operands.size()) unsupported("it has too few operands");
    return in.operands[k];
}

void Binder::materialize(Operand& o, bool wide) {
    switch (o.kind) {
        case Operand::Kind::reg:
        case Operand::Kind::predicate:
            return;
        case Operand::Kind::immediate:
            o.slot = linker_.constant(static_cast<u64>(o.value), wide);
            break;
        case Operand::Kind::frame:
            o.slot = linker_.constant(static_cast<u64>(o.value), wide);
            break;
        case Operand::Kind::sink:
            o.slot = linker_.new_register(wide);
            break;
        case Operand::Kind::symbol:
            if (o.name[0] == '%') {
                o.slot = linker_.special(o.name);
                wide = is_wide(special_registers().at(o.name));
            } else {
                o.slot = linker_.constant(linker_.symbol(o, in.line), wide);
            }
            break;
        default:
            unsupported("an operand of this kind is not expected here");
    }
    o.kind = Operand::Kind::reg;
    o.wide = wide;
}

u32 Binder::destination(std::size_t k, bool wide) {
    operand(k);
    Operand& o = in.operands[k];
    if (o.kind != Operand::Kind::reg && o.kind != Operand::Kind::sink) unsupported("the destination is not a register");
    materialize(o, wide);
    if (o.wide != wide) unsupported("the destination's width does not fit the type");
    return o.slot;
}

u32 Binder::source(std::size_t k, bool wide) {
    operand(k);
    Operand& o = in.operands[k];
    if (o.kind == Operand::Kind::predicate) unsupported("a predicate where a register is expected");
    materialize(o, wide);
    if (o.wide != wide) unsupported("the width of source " + std::to_string(k) + " does not fit the type");
    return o.slot;
}

void Binder::sources(std::size_t first, std::size_t n, bool wide) {
    for (std::size_t k = 0; k < n; ++k) in.src[k] = source(first + k, wide);
}

i32 Binder::predicate_destination(std::size_t k) {
    const Operand& o = operand(k);
    if (o.kind == Operand::Kind::sink) return linker_.new_predicate();
    if (o.kind != Operand::Kind::predicate) unsupported("the destination is not a predicate");
    return static_cast<i32>(o.slot);
}

void Binder::predicate_source(std::size_t k) {
    const Operand& o = operand(k);
    if (o.kind != Operand::Kind::predicate) unsupported("operand " + std::to_string(k) + " is not a predicate");
    in.predicate_src = static_cast<i32>(o.slot);
    in.predicate_src_negated = o.negated;
}

i64 Binder::immediate(std::size_t k) {
    const Operand& o = operand(k);
    if (o.kind != Operand::Kind::immediate) unsupported("operand " + std::to_string(k) + " is not a constant");
    return o.value;
}

void Binder::address(std::size_t k, Space space) {
    if (operand(k).kind != Operand::Kind::address) unsupported("operand " + std::to_string(k) + " is not an address");
    Operand& a = in.operands[k];
    Operand& base = a.parts.at(0);
    // [retval0] and a function's own parameters are in the frame, whatever the instruction calls their space.
    const bool in_frame = base.kind == Operand::Kind::frame || linker_.is_function_parameter(base);
    materialize(base, base.kind == Operand::Kind::reg ? base.wide : true);
    a.slot = base.slot;
    a.wide = base.wide;
    if (in_frame && space == Space::param) in.space = Space::local;
}

void Binder::vector(std::size_t k, bool wide) {
    operand(k);
    Operand& o = in.operands[k];
    if (o.kind != Operand::Kind::vector) {
        Operand whole = o;
        o.parts = {whole};
        o.kind = Operand::Kind::vector;
    }
    for (Operand& p : o.parts) materialize(p, wide);
}

void Binder::memory_space() {
    in.space = has("global")                                                   ? Space::global
               : has("shared") || has("shared::cta") || has("shared::cluster") ? Space::shared
               : has("local")                                                  ? Space::local
               : has("param") || has("param::entry") || has("param::func")     ? Space::param
               : has("const")                                                  ? Space::constant
                                                                               : Space::generic;
}

void Binder::unsupported(const std::string& why) {
    std::string text = in.opcode;
    for (const std::string& m : in.modifiers) text += "." + m;
    throw ProgramError("PTX line " + std::to_string(in.line) + ": " + text + " is not emulated: " + why);
}

void Binder::finish() {
    for (std::size_t i = 0; i < in.modifiers.size(); ++i)
        if (!(understood_ >> i & 1)) unsupported("it does not know ." + in.modifiers[i]);
    const std::function<void(const Operand&)> visit = [&](const Operand& o) {
        if (o.kind == Operand::Kind::reg) in.register_slots.push_back(o.slot);
        for (const Operand& p : o.parts) visit(p);
    };
    for (const Operand& o : in.operands) visit(o);
}

}  // namespace emulator
