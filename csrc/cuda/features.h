// Which CUDA kernels run on a device, and what checks may look at there.
#ifndef PYGPT_CUDA_FEATURES_H
#define PYGPT_CUDA_FEATURES_H

#include <cstddef>
#include <cstdint>
#include <string>

namespace pygpt::cuda {

// Nothing if kernels written for this architecture run on the device, else the reason why not. 80 runs on compute
// capability 8.0 and all later ones; 90 (sm_90a: wgmma, TMA) on 9.0 alone.
std::string why_not(int architecture, int device);

// The most shared memory that one block can have there, in bytes.
std::int64_t shared_memory_bytes(int device);

// All of its memory, in bytes, whoever uses it.
std::int64_t memory_bytes(int device);

// Copies device memory, as it is after the work so far on the stream of the call (cuda/execution.h), and waits for
// that.
void copy_to_host(void* to, const void* from, std::size_t bytes);

}  // namespace pygpt::cuda

#endif
