#include "cpu/measure.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

#include "core/error.h"
#include "cpu/features.h"
#include "cpu/kernels/measure.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

struct Set {
    Isa isa;
    const char* name;
    MultiplyAdds (*multiply_adds)(DType, std::int64_t);
    float (*read_sum)(const float*, std::int64_t);
};

// The sets of this build, best first.
const Set sets[] = {
#if defined(PYGPT_X86_KERNELS)
    {Isa::avx512_bf16, "avx512_bf16", multiply_adds<Isa::avx512_bf16>, read_sum<Isa::avx512_bf16>},
    {Isa::avx512, "avx512", multiply_adds<Isa::avx512>, read_sum<Isa::avx512>},
    {Isa::avx2, "avx2", multiply_adds<Isa::avx2>, read_sum<Isa::avx2>},
#endif
    {Isa::scalar, "scalar", multiply_adds<Isa::scalar>, read_sum<Isa::scalar>},
};

// The shortest time of a run, of as many as fit into the given seconds.
template <class Run>
double best_time(double seconds, Run run) {
    using Clock = std::chrono::steady_clock;
    const auto since = [](auto start) { return std::chrono::duration<double>(Clock::now() - start).count(); };
    double best = std::numeric_limits<double>::infinity();
    const auto start = Clock::now();
    do {
        const auto run_start = Clock::now();
        run();
        best = std::min(best, since(run_start));
    } while (since(start) < seconds);
    return best;
}

const Set& find(const std::string& name) {
    std::string names;
    for (const Set& set : sets) {
        if (name == set.name) {
            if (const std::string reason = why_not(set.isa); !reason.empty())
                throw ValueError(text(name, ": ", reason));
            return set;
        }
        names += std::string(names.empty() ? "" : ", ") + set.name;
    }
    throw ValueError(text("there is no instruction set \"", name, "\"; this build has ", names));
}

}  // namespace

std::vector<InstructionSet> instruction_sets() {
    std::vector<InstructionSet> out;
    for (const Set& set : sets) out.push_back({set.name, why_not(set.isa)});
    return out;
}

double measure_arithmetic(const std::string& isa, DType dtype, double seconds) {
    const Set& set = find(isa);
    constexpr std::int64_t rounds = 1 << 15;  // about a third of a millisecond
    const std::int64_t tasks = 4 * threads();
    const double operations = static_cast<double>(tasks) * set.multiply_adds(dtype, rounds).operations;
    if (operations == 0) throw ValueError(text(isa, " has no multiply-add of ", name(dtype)));
    std::vector<double> sums(tasks);
    return operations / best_time(seconds, [&] {
               parallel_for(tasks, [&](std::int64_t task) { sums[task] = set.multiply_adds(dtype, rounds).sum; });
           });
}

double measure_bandwidth(std::int64_t bytes, double seconds) {
    const Set& set =
        *std::find_if(std::begin(sets), std::end(sets), [](const Set& s) { return why_not(s.isa).empty(); });
    const std::int64_t tasks = threads();
    const std::int64_t part = bytes / tasks / 4096 * 4096;  // of one thread, in bytes
    if (part == 0) throw ValueError(text("bytes must be at least 4096 a thread, but is ", bytes));
    // Small buffers are read several times a run, so that handing out the tasks does not count.
    const std::int64_t passes = std::max<std::int64_t>(1, (std::int64_t{32} << 20) / part);
    const Scratch buffer(part * tasks);
    std::vector<float> sums(tasks);
    const auto each_part = [&](auto visit) {
        parallel_for(tasks, [&](std::int64_t task) {
            visit(task, reinterpret_cast<float*>(static_cast<char*>(buffer.data()) + task * part));
        });
    };
    // Written first: pages that were never written are all the same page.
    each_part([&](std::int64_t, float* data) { std::fill_n(data, part / sizeof(float), 1.0f); });
    return static_cast<double>(part * tasks * passes) / best_time(seconds, [&] {
               each_part([&](std::int64_t task, const float* data) {
                   for (std::int64_t i = 0; i < passes; ++i) sums[task] += set.read_sum(data, part / sizeof(float));
               });
           });
}

}  // namespace pygpt::cpu
