// What the launchers of one op call run in: a device, the caller's stream, and where scratch memory comes from. Whoever
// calls an op with tensors on a CUDA device opens an ExecutionScope first (the bindings do).
#ifndef PYGPT_CUDA_EXECUTION_H
#define PYGPT_CUDA_EXECUTION_H

#include <cstddef>

namespace pygpt::cuda {

struct Execution {
    int device;
    void* stream;  // a cudaStream_t
    // Device memory, aligned to 256 bytes, that lives until the call ends. Ordered by the stream, no synchronisation.
    void* (*allocate)(void* allocator, std::size_t bytes);
    void* allocator;
};

// Makes an Execution that of this thread, and its device the current one, for the length of a scope. Scopes may stand
// in one another: allocate() may run Python.
class ExecutionScope {
  public:
    explicit ExecutionScope(const Execution& execution);
    ~ExecutionScope();
    ExecutionScope(const ExecutionScope&) = delete;
    ExecutionScope& operator=(const ExecutionScope&) = delete;

  private:
    const Execution* previous_;
    int previous_device_;
};

// That of this thread.
const Execution& execution();

// Scratch memory for the rest of the call; nullptr for no bytes.
template <class T>
T* scratch(std::size_t count) {
    if (count == 0) return nullptr;
    return static_cast<T*>(execution().allocate(execution().allocator, count * sizeof(T)));
}

}  // namespace pygpt::cuda

#endif
