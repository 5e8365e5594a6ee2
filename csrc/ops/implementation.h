// How an op finds its kernel: each op has a table of implementations, best first; the first that takes the arguments
// runs. PYGPT_FORCE and pygpt.force name one entry, which then runs or raises. There is no other dispatch.
//
// What an entry takes may depend on dtype, device, head size, the reduced dimension and options, never on the number of
// rows or queries: a row's bits must not change with the batch it stands in.
#ifndef PYGPT_OPS_IMPLEMENTATION_H
#define PYGPT_OPS_IMPLEMENTATION_H

#include <atomic>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/tensor_view.h"
#include "cpu/features.h"
#include "cuda/features.h"

namespace pygpt {

// What every implementation looks at first. Ops whose entries look at more derive from it.
struct Operands {
    DType dtype;  // of the computation: that of the activations
    Device device;
    bool decode = false;  // kernels for decoding may run: the caller does not ask for training's bits
};

// An empty string: the entry takes the arguments; else the reason why not, in words a user understands.
using Reason = std::string;

template <class Arguments>
struct Implementation {
    const char* name;
    Reason (*refuses)(const Operands&);
    void (*run)(const Arguments&);
    // What it looks at beyond the operands; null: nothing.
    Reason (*refuses_options)(const Arguments&) = nullptr;
    // In a forward table: which options it so leaves to later entries, backward ones included, in words.
    const char* leaves = "";
};

// An op's name, its entries, what is forced and what ran last: one per op, for both directions.
class Op {
  public:
    struct Entry {
        const char* name;
        Reason (*refuses)(const Operands&);
        const char* leaves;
    };

    // `table` is the forward table; the backward's has entries of the same names.
    template <class Arguments, std::size_t count>
    Op(const char* name, const Implementation<Arguments> (&table)[count]) : name_(name) {
        for (const auto& entry : table) entries_.push_back({entry.name, entry.refuses, entry.leaves});
        add(this);
    }

    const char* name() const { return name_; }
    std::span<const Entry> entries() const { return entries_; }
    const char* last_used() const { return last_used_.load(); }
    const char* forced() const { return forced_.load(); }

    // Runs only the entry of that name from now on; nothing: free choice again.
    void force(const std::optional<std::string>& name);

    template <class Arguments, std::size_t count>
    void run(const Implementation<Arguments> (&table)[count], Operands operands, const Arguments& arguments) {
        const char* only = forced_.load();
        operands.decode |= only != nullptr;  // who names an entry asks for its bits
        std::string reasons;
        for (const auto& entry : table) {
            if (only && std::string_view(entry.name) != only) continue;
            Reason reason = entry.refuses(operands);
            if (reason.empty() && entry.refuses_options) reason = entry.refuses_options(arguments);
            if (reason.empty()) {
                last_used_.store(entry.name);
                trace(entry.name, operands);
                try {
                    entry.run(arguments);
                } catch (const DeviceError& error) {
                    throw DeviceError(text(name_, " (", entry.name, "): ", error.what()));
                }
                return;
            }
            reasons += text("\n  ", entry.name, ": ", reason);
        }
        throw ValueError(
            text(name_, ": no implementation takes these arguments", only ? " (one is forced)" : "", reasons));
    }

    static const std::vector<Op*>& all();  // in order of their names
    static Op& find(const std::string& name);

  private:
    static void add(Op* op);
    void trace(const char* entry, const Operands& operands) const;  // PYGPT_TRACE=1

    const char* name_;
    std::vector<Entry> entries_;
    std::atomic<const char*> forced_{nullptr};
    std::atomic<const char*> last_used_{nullptr};
};

namespace cpu {

// What the entries of one instruction set take: tensors on the CPU, float32 and bfloat16; float64 is the scalar set's.
template <Isa isa>
Reason refuses(const Operands& operands) {
    if (operands.device.type != DeviceType::cpu) return "the tensors are on " + device_text(operands.device);
    if (operands.dtype == DType::float64 && isa != Isa::scalar) return "float64 has scalar kernels only";
    if (operands.dtype != DType::float64 && operands.dtype != DType::float32 && operands.dtype != DType::bfloat16) {
        return text("there are no CPU kernels for ", name(operands.dtype));
    }
    return why_not(isa);
}

}  // namespace cpu

namespace cuda {

// What the entries of one architecture take: float32, bfloat16 and float16 on devices that run it.
template <int architecture>
Reason refuses(const Operands& operands) {
    if (operands.device.type != DeviceType::cuda) return "the tensors are on " + device_text(operands.device);
    if (operands.dtype != DType::float32 && operands.dtype != DType::bfloat16 && operands.dtype != DType::float16) {
        return text("there are no CUDA kernels for ", name(operands.dtype));
    }
    return why_not(architecture, operands.device.index);
}

// The same for entries that decode. Among an op's backward entries they stand for training's kernels.
template <int architecture>
Reason refuses_decode(const Operands& operands) {
    Reason reason = refuses<architecture>(operands);
    if (reason.empty() && !operands.decode) reason = "it decodes, and the bits of training are asked for";
    return reason;
}

// The same of kernels made of an architecture's matrix instructions for 16-bit numbers.
template <int architecture>
Reason refuses_all_but_16_bit(const Operands& operands) {
    const Reason reason = refuses<architecture>(operands);
    if (!reason.empty() || operands.dtype != DType::float32) return reason;
    return "float32 is not rounded for matrix instructions";
}

}  // namespace cuda
}  // namespace pygpt

#endif
