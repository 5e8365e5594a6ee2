// Joins a kernel with the functions it calls, and binds each instruction to its handler.
#pragma once
#include <initializer_list>
#include <string>

#include "program.h"

namespace emulator {

class Linker;

// What a row of the instruction table works with: one instruction whose operands' registers are known, to be given a
// handler. Asking for a modifier marks it as understood; a modifier that nobody asked for is an error, not a guess.
class Binder {
  public:
    Binder(Linker& linker, Instruction& instruction) : in(instruction), linker_(linker) {}

    Instruction& in;

    bool has(const std::string& modifier);
    bool has_prefix(const std::string& prefix);                 // any modifier that starts so
    void ignore(std::initializer_list<const char*> modifiers);  // understood, and without effect here
    // The k-th type among the modifiers; the last one. Type::none if there are fewer.
    Type type(std::size_t k);
    Type last_type();
    // Which of these modifiers is there; `otherwise` if none is.
    std::string one_of(std::initializer_list<const char*> modifiers, const std::string& otherwise = "");

    const Operand& operand(std::size_t k);
    std::size_t operands() const { return in.operands.size(); }
    // Slots of operands: an immediate, symbol or special register is given a register of its own.
    u32 destination(std::size_t k, bool wide);
    u32 source(std::size_t k, bool wide);
    void sources(std::size_t first, std::size_t n,
                 bool wide);                   // operands first, first + 1, ... into src[0], src[1], ...
    i32 predicate_destination(std::size_t k);  // a scratch predicate for `_`
    void predicate_source(std::size_t k);      // sets predicate_src and predicate_src_negated
    i64 immediate(std::size_t k);
    // An address's base into a register: slot, wide and value (the displacement) of operand k are then set.
    void address(std::size_t k, Space space);
    void vector(std::size_t k,
                bool wide);  // every element of operand k into a register; a scalar becomes a vector of 1
    void materialize(Operand& o, bool wide);  // o becomes a register
    void memory_space();                      // in.space from the modifiers

    void run(Handler handler, Class klass) { in.execute = handler, in.klass = klass; }
    [[noreturn]] void unsupported(const std::string& why);
    void finish();  // every modifier understood?

  private:
    Linker& linker_;
    u64 understood_ = 0;  // one bit a modifier
};

// The instruction table (instruction_table.cpp): opcode to the function that binds it.
using Bind = void (*)(Binder&);
Bind bind_of(const std::string& opcode);  // null if there is none

// Synchronising instructions, which the mutation tool removes one at a time; of an acquire or a release the order.
bool is_synchronising(const Instruction& in);

}  // namespace emulator
