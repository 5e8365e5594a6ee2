#include "cuda/features.h"

#include "core/error.h"
#if defined(PYGPT_CUDA)
#include <cuda_runtime_api.h>

#include "cuda/devices.h"
#include "cuda/error.h"
#include "cuda/execution.h"
#endif

namespace pygpt::cuda {

#if defined(PYGPT_CUDA)

namespace {

#if defined(PYGPT_CUDA_SM90A)
constexpr const char* why_no_sm90a = "";
#else
constexpr const char* why_no_sm90a = "this build has no machine code for sm_90a";
#endif

const Devices& known_devices() {
    static const Devices once = devices();
    return once;
}

}  // namespace

std::string why_not(int architecture, int device) {
    const Devices& known = known_devices();
    if (known.found.empty()) return text("there is no CUDA device: ", known.why_none);
    const DeviceProperties& d = known.found.at(static_cast<std::size_t>(device));
    const bool runs = architecture == 90 ? d.major == 9 && d.minor == 0 : d.major * 10 + d.minor >= architecture;
    if (runs) return architecture == 90 ? why_no_sm90a : "";
    return text("it needs compute capability ", architecture / 10, ".", architecture % 10,
                architecture == 90 ? "" : " or later", "; the device has ", d.major, ".", d.minor);
}

std::int64_t shared_memory_bytes(int device) {
    return known_devices().found.at(static_cast<std::size_t>(device)).shared_memory_bytes;
}

std::int64_t memory_bytes(int device) {
    return known_devices().found.at(static_cast<std::size_t>(device)).memory_bytes;
}

void copy_to_host(void* to, const void* from, std::size_t bytes) {
    const auto stream = static_cast<cudaStream_t>(execution().stream);
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream));
    check(cudaStreamSynchronize(stream));
}

#else

std::string why_not(int, int) {
    return "this build has no CUDA part";
}

std::int64_t shared_memory_bytes(int) {
    return 0;
}

std::int64_t memory_bytes(int) {
    return 0;
}

void copy_to_host(void*, const void*, std::size_t) {
    throw DeviceError(why_not(80, 0));
}

#endif

}  // namespace pygpt::cuda
