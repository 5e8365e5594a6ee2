#include "ops/implementation.h"

#include <algorithm>

#include "core/trace.h"

namespace pygpt {
namespace {

std::vector<Op*>& registry() {
    static std::vector<Op*> ops;
    return ops;
}

}  // namespace

void Op::add(Op* op) {
    auto& ops = registry();
    const auto place = std::upper_bound(ops.begin(), ops.end(), op, [](const Op* a, const Op* b) {
        return std::string_view(a->name()) < std::string_view(b->name());
    });
    ops.insert(place, op);
}

const std::vector<Op*>& Op::all() {
    return registry();
}

Op& Op::find(const std::string& name) {
    std::string names;
    for (Op* op : registry()) {
        if (op->name() == name) return *op;
        names += std::string(names.empty() ? "" : ", ") + op->name();
    }
    throw ValueError(text("there is no op \"", name, "\"; the ops are ", names));
}

void Op::force(const std::optional<std::string>& name) {
    if (!name) {
        forced_.store(nullptr);
        return;
    }
    std::string names;
    for (const Entry& entry : entries_) {
        if (entry.name == *name) {
            forced_.store(entry.name);
            return;
        }
        names += std::string(names.empty() ? "" : ", ") + entry.name;
    }
    throw ValueError(text(name_, " has no implementation \"", *name, "\"; it has ", names));
}

void Op::trace(const char* entry, const Operands& operands) const {
    if (trace::on()) trace::call(text(name_, " ", entry, " ", pygpt::name(operands.dtype)));
}

}  // namespace pygpt
