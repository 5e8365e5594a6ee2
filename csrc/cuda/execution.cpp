#include "cuda/execution.h"

#include <cuda_runtime_api.h>

#include "cuda/error.h"

namespace pygpt::cuda {
namespace {

thread_local const Execution* current = nullptr;

}  // namespace

ExecutionScope::ExecutionScope(const Execution& execution) : previous_(current) {
    check(cudaGetDevice(&previous_device_));
    if (previous_device_ != execution.device) check(cudaSetDevice(execution.device));
    current = &execution;
}

ExecutionScope::~ExecutionScope() {
    if (previous_device_ != current->device) cudaSetDevice(previous_device_);
    current = previous_;
}

const Execution& execution() {
    return *current;
}

}  // namespace pygpt::cuda
