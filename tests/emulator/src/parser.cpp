// PTX text to Module: variables, and functions as lists of instructions with operands resolved to registers, frame
// offsets and branch targets. What an instruction means is not looked at here (linker.cpp, instruction_table.cpp).
// Grammar: PTX ISA, 4 "Syntax" and 11 "Directives".
#include <cctype>
#include <set>

#include "program.h"

namespace emulator {
namespace {

struct Token {
    std::string text;
    int line;
    std::size_t body_begin = 0, body_end = 0;  // of the { of a body that was passed over
};

[[noreturn]] void fail(const std::string& what, int line) {
    throw ProgramError("PTX line " + std::to_string(line) + ": " + what);
}

// Words hold letters, digits and _ $ % . and "::" (as in "shared::cta"); strings keep their quotes; all else is one
// character a token. Comments vanish. A module has many functions, and few of them run: at its level the text between
// braces is passed over, but for what a variable holds.
std::vector<Token> tokenize(const std::string& text, std::size_t i, std::size_t end, int line, bool passes_bodies) {
    const auto is_word = [](char c) {
        return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
    };
    std::vector<Token> tokens;
    int depth = 0;  // of braces in what is passed over
    while (i < end) {
        const char c = text[i];
        if (c == '\n') {
            ++line, ++i;
        } else if (std::isspace(static_cast<unsigned char>(c)) || c == 0) {
            ++i;
        } else if (text.compare(i, 2, "//") == 0) {
            while (i < end && text[i] != '\n') ++i;
        } else if (text.compare(i, 2, "/*") == 0) {
            while (i < end && text.compare(i, 2, "*/") != 0) line += text[i++] == '\n';
            i += 2;
        } else if (c == '"') {
            const std::size_t close = std::min(text.find('"', i + 1), end - 1);
            if (depth == 0) tokens.push_back({text.substr(i, close - i + 1), line});
            i = close + 1;
        } else if (depth > 0) {
            depth += c == '{';
            depth -= c == '}';
            ++i;
            if (depth > 0) continue;
            tokens.back().body_end = i;
            tokens.push_back({"}", line});
        } else if (passes_bodies && c == '{' && (tokens.empty() || tokens.back().text != "=")) {
            tokens.push_back({"{", line, ++i});
            depth = 1;
        } else if (is_word(c)) {
            std::size_t stop = i;
            while (stop < end) {
                if (is_word(text[stop]))
                    ++stop;
                else if (text.compare(stop, 2, "::") == 0)
                    stop += 2;
                else
                    break;
            }
            tokens.push_back({text.substr(i, stop - i), line});
            i = stop;
        } else {
            tokens.push_back({std::string(1, c), line});
            ++i;
        }
    }
    return tokens;
}

bool is_number(const std::string& s) {
    return !s.empty() && std::isdigit(static_cast<unsigned char>(s[0]));
}

// 0x1F, 0b101, 017, 12, 12U, 0f3F800000 (the bits of a float), 0d... (of a double)
u64 number(const std::string& s) {
    if (s.size() > 2 && s[0] == '0') {
        const char kind = static_cast<char>(std::tolower(static_cast<unsigned char>(s[1])));
        if (kind == 'f' || kind == 'd') return std::stoull(s.substr(2), nullptr, 16);
        if (kind == 'b') return std::stoull(s.substr(2), nullptr, 2);
    }
    return std::stoull(s, nullptr, 0);
}

u64 align_up(u64 x, u64 to) {
    return (x + to - 1) / to * to;
}

std::vector<std::string> split_at_dots(const std::string& s) {
    std::vector<std::string> parts(1);
    for (char c : s) {
        if (c == '.')
            parts.emplace_back();
        else
            parts.back() += c;
    }
    return parts;
}

class Parser {
  public:
    Parser(Module& module, std::vector<Token> tokens) : module_(module), tokens_(std::move(tokens)) {}
    void parse();
    void body(Function& f);

  private:
    // ---- tokens
    const std::string& current() const {
        static const std::string end;
        return at_ < tokens_.size() ? tokens_[at_].text : end;
    }
    bool is_next(const char* text) const { return at_ + 1 < tokens_.size() && tokens_[at_ + 1].text == text; }
    int line() const { return at_ < tokens_.size() ? tokens_[at_].line : -1; }
    std::string take() {
        if (at_ >= tokens_.size()) fail("the text ends in the middle of a statement", -1);
        return tokens_[at_++].text;
    }
    bool accept(const char* text) {
        if (current() != text) return false;
        ++at_;
        return true;
    }
    void expect(const char* text) {
        if (!accept(text)) fail(std::string("expected ") + text + ", found " + current(), line());
    }
    void skip_past(const char* text) {
        while (at_ < tokens_.size() && !accept(text)) ++at_;
    }
    void skip_braces();
    i64 signed_number() {
        const bool minus = accept("-");
        const i64 n = static_cast<i64>(number(take()));
        return minus ? -n : n;
    }

    // ---- declarations
    Variable variable(Space space);
    void initial_value(Variable& v, u64 element_bytes);
    std::vector<Parameter> parameters(u32& bytes);
    void function(bool is_kernel);
    void function_attributes(Function& f);
    void block();
    void register_declaration();
    void source_line();

    // ---- instructions
    void instruction();
    Operand operand();
    Operand address();
    Operand named(const std::string& name, int line);

    // Names are looked up from the innermost block outwards.
    struct Scope {
        int id;
        std::map<std::string, u32> registers;      // name -> number in the function
        std::map<std::string, u64> frame_offsets;  // local variables and call parameters
    };
    struct Branch {
        std::size_t instruction;
        std::vector<int> scopes;  // outermost first
    };

    Module& module_;
    std::vector<Token> tokens_;
    std::size_t at_ = 0;
    Function* function_ = nullptr;
    std::vector<Scope> scopes_;
    int scopes_seen_ = 0;
    std::map<std::pair<int, std::string>, u32> labels_;  // (scope, name)
    std::vector<Branch> branches_;
    SourceLine source_;
};

void Parser::parse() {
    while (at_ < tokens_.size()) {
        const std::string s = current();
        if (s == ".version" || s == ".address_size") {
            at_ += 2;
        } else if (s == ".target") {
            ++at_;
            const std::string target = take();  // sm_90a
            module_.target = std::atoi(target.c_str() + 3);
            module_.arch_specific = target.back() == 'a' || target.back() == 'f';
            while (accept(",")) ++at_;
        } else if (s == ".file") {
            ++at_;
            const int index = static_cast<int>(number(take()));
            const std::string quoted = take();
            module_.files[index] = quoted.substr(1, quoted.size() - 2);
            while (accept(",")) ++at_;
        } else if (s == ".section") {
            while (current() != "{") ++at_;
            skip_braces();
        } else if (s == ".visible" || s == ".extern" || s == ".weak" || s == ".common" || s == ";") {
            ++at_;
        } else if (s == ".global" || s == ".const" || s == ".shared") {
            ++at_;
            const Variable v = variable(s == ".global"  ? Space::global
                                        : s == ".const" ? Space::constant
                                                        : Space::shared);
            expect(";");
            Variable& known = module_.variables[v.name];
            const u64 align = std::max(known.align, v.align);  // an extern may be declared twice
            known = v;
            known.align = align;
        } else if (s == ".alias") {
            fail(".alias is not emulated", line());
        } else if (s == ".entry" || s == ".func") {
            ++at_;
            function(s == ".entry");
        } else {
            fail("unexpected at the level of the module: " + s, line());
        }
    }
}

void Parser::skip_braces() {
    int depth = 0;
    do {
        depth += current() == "{";
        depth -= current() == "}";
        ++at_;
    } while (depth > 0 && at_ < tokens_.size());
}

// .align 16 .b8 name[64] = {1, 2, symbol}
Variable Parser::variable(Space space) {
    Variable v;
    v.space = space;
    Type type = Type::none;
    u64 vector = 1;
    for (;;) {
        const std::string s = current();
        if (s == ".align") {
            ++at_;
            v.align = number(take());
        } else if (s == ".attribute" || s == ".ptr" || s == ".managed") {
            ++at_;
            if (s == ".attribute") skip_past(")");
        } else if (s == ".global" || s == ".shared" || s == ".const" || s == ".local") {
            ++at_;  // the space a pointer parameter points to
        } else if (s == ".v2" || s == ".v4") {
            ++at_;
            vector = static_cast<u64>(s[2] - '0');
        } else if (s.size() > 1 && s[0] == '.' && type_named(s.substr(1)) != Type::none) {
            ++at_;
            type = type_named(s.substr(1));
        } else {
            break;
        }
    }
    v.name = take();
    const u64 element_bytes = static_cast<u64>(size_of(type)) * vector;
    u64 elements = 1;
    while (accept("[")) {
        if (current() == "]")
            v.unsized = true, elements = 0;
        else
            elements *= number(take());
        expect("]");
    }
    v.size = elements * element_bytes;
    v.align = std::max(v.align, element_bytes);
    if (accept("=")) {
        initial_value(v, element_bytes);
        if (v.unsized) v.size = v.initial.size(), v.unsized = false;
        v.initial.resize(v.size);
    }
    return v;
}

void Parser::initial_value(Variable& v, u64 element_bytes) {
    if (accept("{")) {
        while (!accept("}")) {
            initial_value(v, element_bytes);
            accept(",");
        }
        return;
    }
    u64 value = 0;
    if (current() == "-" || is_number(current())) {
        value = static_cast<u64>(signed_number());
    } else {
        std::string symbol = take();
        if (symbol == "generic") {
            expect("(");
            symbol = take();
            expect(")");
        }
        v.relocations.push_back({v.initial.size(), symbol});
    }
    for (u64 i = 0; i < element_bytes; ++i) v.initial.push_back(static_cast<u8>(value >> (8 * i)));
}

// (.param .u64 a, .param .align 64 .b8 map[128])
std::vector<Parameter> Parser::parameters(u32& bytes) {
    std::vector<Parameter> list;
    expect("(");
    while (!accept(")")) {
        expect(".param");
        const Variable v = variable(Space::param);
        bytes = static_cast<u32>(align_up(bytes, v.align));
        list.push_back({v.name, bytes, static_cast<u32>(v.size), static_cast<u32>(v.align)});
        bytes += static_cast<u32>(v.size);
        accept(",");
    }
    return list;
}

void Parser::function_attributes(Function& f) {
    while (current() != ";" && current() != "{") {
        const std::string s = take();
        u32 xyz[3] = {1, 1, 1};
        if (s != ".reqnctapercluster" && s != ".maxntid" && s != ".reqntid") continue;
        for (int i = 0; i < 3 && is_number(current()); ++i) {
            xyz[i] = static_cast<u32>(number(take()));
            accept(",");
        }
        if (s == ".reqnctapercluster")
            std::copy(xyz, xyz + 3, f.cluster);
        else
            f.max_threads = xyz[0] * xyz[1] * xyz[2];
    }
}

void Parser::function(bool is_kernel) {
    Function f;
    f.is_kernel = is_kernel;
    u32 return_bytes = 0;
    if (!is_kernel && current() == "(") f.returns = parameters(return_bytes);
    f.name = take();
    if (current() == "(") f.params = parameters(f.param_bytes);
    function_attributes(f);
    if (accept(";")) {
        f.is_declaration = true;
        module_.functions.try_emplace(f.name, f);
        return;
    }
    if (current() != "{") fail("expected { after the head of " + f.name, line());
    const Token& brace = tokens_[at_];
    f.body_begin = brace.body_begin, f.body_end = brace.body_end, f.body_line = brace.line;
    skip_braces();
    module_.functions[f.name] = std::move(f);
}

void Parser::body(Function& f) {
    function_ = &f;
    block();
    for (const Branch& b : branches_) {
        Instruction& in = f.code[b.instruction];
        bool found = false;
        for (auto scope = b.scopes.rbegin(); scope != b.scopes.rend() && !found; ++scope) {
            const auto label = labels_.find({*scope, in.operands.at(0).name});
            found = label != labels_.end();
            if (found) in.target = label->second;
        }
        if (!found) fail("no label " + in.operands.at(0).name, in.line);
    }
    Instruction end;  // control may not fall off the end
    end.opcode = "ret";
    end.line = f.code.empty() ? 0 : f.code.back().line;
    f.code.push_back(end);
    // A function's own parameters live in its frame: nobody calls it twice at a time (the linker refuses recursion).
    if (!f.is_kernel)
        for (auto* list : {&f.params, &f.returns})
            for (Parameter& p : *list) {
                f.frame_bytes = static_cast<u32>(align_up(f.frame_bytes, std::max(p.align, 16u)));
                p.offset = f.frame_bytes;
                f.frame_bytes += p.size;
            }
}

void Parser::block() {
    scopes_.push_back({scopes_seen_++, {}, {}});
    while (!accept("}")) {
        if (at_ >= tokens_.size()) fail("a function's closing } is missing", -1);
        const std::string s = current();
        if (accept("{")) {
            block();
        } else if (accept(";")) {
        } else if (accept(".reg")) {
            register_declaration();
        } else if (s == ".local" || s == ".param" || s == ".shared") {
            ++at_;
            const Variable v = variable(s == ".shared" ? Space::shared : Space::local);
            expect(";");
            if (s == ".shared") {  // its name is unique in the module already
                module_.variables[v.name] = v;
                continue;
            }
            u32& frame = function_->frame_bytes;
            frame = static_cast<u32>(align_up(frame, std::max<u64>(v.align, 16)));
            scopes_.back().frame_offsets[v.name] = frame;
            frame += static_cast<u32>(v.size);
        } else if (s == ".loc") {
            source_line();
        } else if (s == ".pragma") {
            skip_past(";");
        } else if (s == ".branchtargets" || s == ".callprototype" || s == ".calltargets") {
            fail(s + " (indirect branches and calls) is not emulated", line());
        } else if (is_next(":")) {
            labels_[{scopes_.back().id, s}] = static_cast<u32>(function_->code.size());
            at_ += 2;
        } else {
            instruction();
        }
    }
    scopes_.pop_back();
}

// .reg .b32 %r<12>;   .reg .pred p, q;
void Parser::register_declaration() {
    const std::string type_text = take();
    const Type type = type_named(type_text.substr(1));
    if (type == Type::none || type == Type::b128) fail(".reg " + type_text + " is not emulated", line());
    do {
        const std::string name = take();
        u64 count = 1;
        const bool many = accept("<");
        if (many) {
            count = number(take());
            expect(">");
        }
        for (u64 i = 0; i < count; ++i) {
            scopes_.back().registers[many ? name + std::to_string(i) : name] =
                static_cast<u32>(function_->registers.size());
            function_->registers.push_back({size_of(type) == 8, type == Type::pred});
        }
    } while (accept(","));
    expect(";");
}

// .loc file line column [, function_name label, inlined_at file line column]
void Parser::source_line() {
    const int here = line();
    ++at_;
    source_ = {};
    source_.file = static_cast<i32>(number(take()));
    source_.line = static_cast<i32>(number(take()));
    while (at_ < tokens_.size() && line() == here) {
        if (take() == "inlined_at") {
            source_.inlined_file = static_cast<i32>(number(take()));
            source_.inlined_line = static_cast<i32>(number(take()));
        }
    }
}

// @!p opcode.modifier.modifier a, {b, c}, [d + 4], 1;
void Parser::instruction() {
    Instruction in;
    in.line = line();
    in.source = source_;
    if (accept("@")) {
        in.guard_negated = accept("!");
        const Operand guard = operand();
        if (guard.kind != Operand::Kind::predicate) fail("a guard must be a predicate", in.line);
        in.guard = static_cast<i32>(guard.slot);
    }
    std::vector<std::string> words = split_at_dots(take());
    in.opcode = words[0];
    in.modifiers.assign(words.begin() + 1, words.end());
    if (current() != ";") {
        do in.operands.push_back(operand());
        while (accept(","));
    }
    if (!accept(";")) fail("expected ; after " + in.opcode + ", found " + current(), line());
    if (in.opcode == "bra") {
        Branch b{function_->code.size(), {}};
        for (const Scope& s : scopes_) b.scopes.push_back(s.id);
        branches_.push_back(b);
    }
    function_->code.push_back(std::move(in));
}

// [base], [base + 8], [map, {x, y}]
Operand Parser::address() {
    Operand a;
    a.kind = Operand::Kind::address;
    a.parts.push_back(operand());
    if (accept("+"))
        a.value += signed_number();
    else if (current() == "-")
        a.value += signed_number();
    while (accept(",")) a.parts.push_back(operand());
    expect("]");
    return a;
}

Operand Parser::named(const std::string& name, int at) {
    Operand o;
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
        if (const auto r = scope->registers.find(name); r != scope->registers.end()) {
            const RegisterDeclaration& declared = function_->registers[r->second];
            o.kind = declared.predicate ? Operand::Kind::predicate : Operand::Kind::reg;
            o.wide = declared.wide;
            o.slot = r->second;
            return o;
        }
        if (const auto v = scope->frame_offsets.find(name); v != scope->frame_offsets.end()) {
            o.kind = Operand::Kind::frame;
            o.name = name;
            o.value = static_cast<i64>(v->second);
            return o;
        }
    }
    if (name[0] == '%' && !special_registers().contains(name)) fail("register " + name + " is not known", at);
    o.kind = Operand::Kind::symbol;  // a variable, parameter, function, label or special register
    o.name = name;
    return o;
}

Operand Parser::operand() {
    if (accept("[")) return address();
    if (accept("!")) {
        Operand o = operand();
        o.negated = true;
        return o;
    }
    Operand o;
    const bool brace = current() == "{";
    if (brace || current() == "(") {
        ++at_;
        o.kind = Operand::Kind::vector;
        while (!accept(brace ? "}" : ")")) {
            o.parts.push_back(operand());
            accept(",");
        }
        return o;
    }
    const int here = line();
    const bool minus = accept("-");
    const std::string s = take();
    if (s == "_") {
        o.kind = Operand::Kind::sink;
    } else if (is_number(s)) {
        o.kind = Operand::Kind::immediate;
        o.float_literal = s.size() > 2 && s[0] == '0' && (s[1] == 'f' || s[1] == 'F' || s[1] == 'd' || s[1] == 'D');
        const u64 n = number(s);
        if (o.float_literal && minus)
            o.value = static_cast<i64>(n ^ (s.size() > 10 ? 1ull << 63 : 1ull << 31));
        else
            o.value = minus ? -static_cast<i64>(n) : static_cast<i64>(n);
    } else {
        o = named(s, here);
    }
    if (accept("|")) {  // shfl d|p
        if (accept("_")) return o;
        const Operand second = operand();
        if (second.kind != Operand::Kind::predicate) fail("expected a predicate after |", here);
        o.paired_predicate = static_cast<i32>(second.slot);
    } else if (o.kind == Operand::Kind::symbol && (current() == "+" || current() == "-")) {
        accept("+");
        o.value += signed_number();
    }
    return o;
}

}  // namespace

std::unique_ptr<Module> parse_module(const std::string& text) {
    auto module = std::make_unique<Module>();
    module->text = text;
    Parser(*module, tokenize(text, 0, text.size(), 1, true)).parse();
    return module;
}

void parse_body(Module& module, Function& f) {
    if (f.is_parsed || f.is_declaration) return;
    Function whole = f;
    Parser(module, tokenize(module.text, f.body_begin, f.body_end, f.body_line, false)).body(whole);
    whole.is_parsed = true;
    f = std::move(whole);
}

}  // namespace emulator
