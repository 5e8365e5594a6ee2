// The CUDA devices of this machine.
//
// The runtime is linked statically and looks for the driver at its first call: on a machine without one the extension
// imports, and the list is empty. Asking starts the driver in this process, after which a forked child cannot use CUDA.
#ifndef PYGPT_CUDA_DEVICES_H
#define PYGPT_CUDA_DEVICES_H

#include <cstdint>
#include <string>
#include <vector>

namespace pygpt::cuda {

struct DeviceProperties {
    std::string name;
    int major, minor;  // compute capability
    int multiprocessors;
    std::int64_t memory_bytes;
    std::int64_t shared_memory_bytes;  // at most, of one block that asks for more than the default (opt-in)
};

struct Devices {
    std::vector<DeviceProperties> found;
    std::string why_none;  // the runtime's words where found is empty
};

Devices devices();

}  // namespace pygpt::cuda

#endif
