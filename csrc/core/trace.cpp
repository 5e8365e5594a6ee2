#include "core/trace.h"

#include <cstdlib>
#include <iostream>
#include <string_view>

#include "core/error.h"

namespace pygpt::trace {
namespace {

thread_local std::string arguments;

}  // namespace

bool on() {
    static const bool asked = [] {
        const char* value = std::getenv("PYGPT_TRACE");
        return value && std::string_view(value) == "1";
    }();
    return asked;
}

void begin() {
    arguments.clear();
}

void argument(const char* name, const TensorView& tensor) {
    arguments += text(", ", name, " ", shape_text(tensor));
}

// In one piece each, since other threads write too.
void call(const std::string& op) {
    std::cerr << text("pygpt: ", op, arguments, "\n");
}

void detail(const std::string& what) {
    std::cerr << text("pygpt:   ", what, "\n");
}

}  // namespace pygpt::trace
