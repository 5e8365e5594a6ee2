#include "cpu/thread_pool.h"

#include <pthread.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <cfenv>
#endif

namespace pygpt::cpu {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto spin_time = std::chrono::microseconds(50);

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

// The modes in which kernels run, as the processor holds them.
#if defined(__x86_64__)
constexpr std::uint32_t kernel_mode = 0x1F80;  // MXCSR: all exceptions masked, round to nearest, no FTZ, no DAZ
std::uint32_t read_mode() {
    return _mm_getcsr();
}
void write_mode(std::uint32_t mode) {
    _mm_setcsr(mode);
}
#elif defined(__aarch64__)
constexpr std::uint32_t kernel_mode = 0;  // FPCR: round to nearest, no flush to zero
std::uint32_t read_mode() {
    std::uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return static_cast<std::uint32_t>(mode);
}
void write_mode(std::uint32_t mode) {
    asm volatile("msr fpcr, %0" ::"r"(static_cast<std::uint64_t>(mode)));
}
#else
constexpr std::uint32_t kernel_mode = FE_TONEAREST;
std::uint32_t read_mode() {
    return static_cast<std::uint32_t>(std::fegetround());
}
void write_mode(std::uint32_t mode) {
    std::fesetround(static_cast<int>(mode));
}
#endif

class Pool {
  public:
    // False if the workers are busy with another thread's call: the caller then does all tasks itself.
    bool run(std::int64_t tasks, Task task, void* context, int threads) {
        std::unique_lock<std::mutex> one_call(call_, std::try_to_lock);
        if (!one_call) return false;
        grow(threads - 1);

        task_ = task;
        context_ = context;
        helpers_ = threads - 1;
        for (int i = 0; i < threads; ++i) {
            Share& share = shares_[static_cast<std::size_t>(i)];
            share.next.store(tasks * i / threads, std::memory_order_relaxed);
            share.end = tasks * (i + 1) / threads;
        }
        spin_.store(threads <= cores_, std::memory_order_relaxed);
        open_call_.store(++calls_);  // from here on workers may join
        if (sleepers_.load() > 0) {
            std::lock_guard<std::mutex> lock(sleep_);
            wake_.notify_all();
        }
        take_tasks(0);
        open_call_.store(0);  // no worker joins after this; those inside have taken their last task or are in it
        for (auto start = Clock::now(); inside_.load() > 0;) {
            if (Clock::now() - start < spin_time) {
                pause();
            } else {
                std::this_thread::yield();
            }
        }
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
        return true;
    }

  private:
    // Neighbouring tasks, which mostly lie side by side in memory. On a cache line of its own.
    struct alignas(64) Share {
        std::atomic<std::int64_t> next;
        std::int64_t end;
    };

    // Those of the own share, then what is left of the others'.
    void take_tasks(int own) {
        const int count = helpers_ + 1;
        for (int i = 0; i < count; ++i) {
            Share& share = shares_[static_cast<std::size_t>((own + i) % count)];
            for (;;) {
                const std::int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
                if (task >= share.end) break;
                try {
                    task_(context_, task);
                } catch (...) {
                    std::lock_guard<std::mutex> lock(error_lock_);
                    if (!error_) error_ = std::current_exception();
                }
            }
        }
    }

    // As far as the system has threads: those that exist do all tasks.
    void grow(int workers) {
        if (shares_.size() < static_cast<std::size_t>(workers + 1)) {
            shares_ = std::vector<Share>(static_cast<std::size_t>(workers + 1));
        }
        try {
            for (; workers_ < workers; ++workers_) std::thread([this, index = workers_] { work(index); }).detach();
        } catch (const std::system_error&) {
        }
    }

    void work(int index);

    // A worker joins a call in two steps: it counts itself in, then looks whether that call is still open. The caller
    // closes the call first and then waits until nobody is inside, so a late worker never sees a finished call's task.
    void help(std::uint64_t call, int index) {
        inside_.fetch_add(1);
        if (open_call_.load() == call && index < helpers_) take_tasks(index + 1);
        inside_.fetch_sub(1);
    }

    const int cores_ = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    std::mutex call_;
    int workers_ = 0;          // guarded by call_
    std::uint64_t calls_ = 0;  // guarded by call_

    // The open call. Written before open_call_ is set, read by workers that saw it set.
    Task task_ = nullptr;
    void* context_ = nullptr;
    int helpers_ = 0;
    std::vector<Share> shares_;                // one for each thread of the call, and more where a call before had more
    std::atomic<std::uint64_t> open_call_{0};  // its number; 0 when none is open
    std::atomic<int> inside_{0};
    std::mutex error_lock_;
    std::exception_ptr error_;  // the first that a task threw; the caller throws it again

    std::atomic<bool> spin_{true};
    std::atomic<int> sleepers_{0};
    std::mutex sleep_;
    std::condition_variable wake_;
};

thread_local bool in_task = false;
thread_local int allowed_threads = 1;

struct InTask {
    const bool outer = std::exchange(in_task, true);
    ~InTask() { in_task = outer; }
};

void Pool::work(int index) {
    in_task = true;
    write_mode(kernel_mode);
    std::uint64_t seen = 0;
    for (;;) {
        std::uint64_t call = open_call_.load();
        for (auto start = Clock::now(); call == seen || call == 0; call = open_call_.load()) {
            if (spin_.load(std::memory_order_relaxed) && Clock::now() - start < spin_time) {
                pause();
                continue;
            }
            std::unique_lock<std::mutex> lock(sleep_);
            sleepers_.fetch_add(1);
            wake_.wait(lock, [&] {
                call = open_call_.load();
                return call != seen && call != 0;
            });
            sleepers_.fetch_sub(1);
            break;
        }
        seen = call;
        help(call, index);
    }
}

// Never destroyed: workers may outlive main. Replaced in a forked child, where the parent's workers do not exist.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
    static const bool ready = [] {
        pool.store(new Pool);
        pthread_atfork(nullptr, nullptr, [] { pool.store(new Pool); });
        return true;
    }();
    (void)ready;
    return *pool.load();
}

// Freed blocks that a thread keeps for its next scopes, the latest on top.
struct Kept {
    struct Block {
        void* data;
        std::size_t bytes;
    };
    std::vector<Block> blocks;
    ~Kept() {
        for (const Block& block : blocks) std::free(block.data);
    }
};
thread_local Kept kept;
constexpr std::size_t most_kept_blocks = 8;
constexpr std::size_t largest_kept_bytes = std::size_t{32} << 20;

constexpr std::size_t huge_page = std::size_t{2} << 20;

}  // namespace

void set_threads(int threads) {
    allowed_threads = threads < 1 ? 1 : threads;
}
int threads() {
    return in_task ? 1 : allowed_threads;
}

void parallel_for(std::int64_t tasks, Task run, void* context) {
    const int wanted = static_cast<int>(std::min<std::int64_t>(threads(), tasks));
    const InTask mark;
    if (wanted <= 1 || !the_pool().run(tasks, run, context, wanted)) {
        for (std::int64_t task = 0; task < tasks; ++task) run(context, task);
    }
}

FloatingPointMode::FloatingPointMode() : saved_(read_mode()) {
    write_mode(kernel_mode);
}
FloatingPointMode::~FloatingPointMode() {
    write_mode(saved_);
}

void use_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    const std::uintptr_t first = (begin + huge_page - 1) / huge_page * huge_page;
    const std::uintptr_t last = (begin + bytes) / huge_page * huge_page;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

Scratch::Scratch(std::size_t bytes) {
    const std::size_t alignment = bytes < huge_page ? 64 : huge_page;
    bytes_ = (bytes + alignment - 1) / alignment * alignment;
    for (auto block = kept.blocks.rbegin(); block != kept.blocks.rend(); ++block) {
        if (block->bytes >= bytes_) {
            data_ = block->data;
            bytes_ = block->bytes;
            kept.blocks.erase(std::next(block).base());
            return;
        }
    }
    data_ = std::aligned_alloc(alignment, bytes_ ? bytes_ : alignment);
    if (!data_) throw std::bad_alloc();
    use_huge_pages(data_, bytes_);
}

Scratch::~Scratch() {
    if (bytes_ > largest_kept_bytes) {
        std::free(data_);
        return;
    }
    if (kept.blocks.size() == most_kept_blocks) {
        std::free(kept.blocks.front().data);
        kept.blocks.erase(kept.blocks.begin());
    }
    kept.blocks.push_back({data_, bytes_});
}

}  // namespace pygpt::cpu
