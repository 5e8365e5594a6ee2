// The errors that an op raises. The bindings turn them into Python's exceptions of the same names.
#ifndef PYGPT_CORE_ERROR_H
#define PYGPT_CORE_ERROR_H

#include <sstream>
#include <stdexcept>
#include <string>

namespace pygpt {

struct ValueError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct TypeError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
// A CUDA call or kernel that failed, in the runtime's words; Python's RuntimeError.
struct DeviceError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The parts, written one after the other.
template <class... Parts>
std::string text(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

}  // namespace pygpt

#endif
