// One pool of threads for all CPU kernels.
//
// parallel_for(tasks, f) runs f(0) .. f(tasks - 1), each once, on the calling thread and up to threads() - 1 workers.
// Each begins with an equal share of neighbouring tasks, in order, since a thread streams faster through one long piece
// of memory than through every second short one (by an eighth, in a sum of two tensors), and then takes the next task
// of those who are not done. Which thread runs a task changes nothing in the result: each output has one owner task,
// which sums it in an order that the shapes alone decide. A call from inside a task, or while another Python thread is
// using the workers, runs on its own thread. Workers look for work for at most 50 µs before they sleep, and not at all
// when there are more threads than cores. A forked child starts with a fresh pool.
#ifndef PYGPT_CPU_THREAD_POOL_H
#define PYGPT_CPU_THREAD_POOL_H

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace pygpt::cpu {

// How many threads the calls of this thread may use; the bindings set it before each op to torch.get_num_threads().
void set_threads(int threads);
int threads();

using Task = void (*)(void* context, std::int64_t task);
void parallel_for(std::int64_t tasks, Task run, void* context);

template <class F>
void parallel_for(std::int64_t tasks, F&& f) {
    auto run = [](void* context, std::int64_t task) { (*static_cast<std::remove_reference_t<F>*>(context))(task); };
    parallel_for(tasks, run, const_cast<void*>(static_cast<const void*>(&f)));
}

// Round to nearest, denormals kept, whatever the caller's floating-point mode, which comes back at the end.
class FloatingPointMode {
  public:
    FloatingPointMode();
    ~FloatingPointMode();
    FloatingPointMode(const FloatingPointMode&) = delete;
    FloatingPointMode& operator=(const FloatingPointMode&) = delete;

  private:
    std::uint32_t saved_;
};

// Asks the system for pages of 2 MiB where whole ones lie inside memory that is about to be written: the first touch of
// each page costs a call into the system, which for a large result in pages of 4 KiB takes longer than writing it
// (37 MB: 15 ms against 1.2 ms). Nothing depends on the answer.
void use_huge_pages(void* data, std::size_t bytes);

// Memory for the length of a scope, aligned to 64 bytes, uninitialised. Each thread keeps what it used last, so that a
// kernel that runs again touches no new pages. Scopes of one thread nest.
class Scratch {
  public:
    explicit Scratch(std::size_t bytes);
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    void* data() const { return data_; }

  private:
    void* data_;
    std::size_t bytes_;
};

}  // namespace pygpt::cpu

#endif
