// What this machine can do at most, measured on `threads()` threads: the limits that benchmarks, training and doctor
// hold results against. Each runs for about the given time and returns the best of its windows, since anything else
// that runs on the machine only slows a window down.
#ifndef PYGPT_CPU_MEASURE_H
#define PYGPT_CPU_MEASURE_H

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace pygpt::cpu {

struct InstructionSet {
    std::string name;
    std::string why_not;  // it does not run here; empty: it does
};

// Those that this build has kernels for, best first.
std::vector<InstructionSet> instruction_sets();

// Operations per second of multiply-adds on registers (one is two operations) with the instructions of the named set
// ("avx512"). float32 everywhere, float64 in the scalar set, bfloat16 (products summed in float32) in avx512_bf16.
// ValueError where the set does not run here or does not compute the dtype.
double measure_arithmetic(const std::string& isa, DType dtype, double seconds);

// Bytes per second read, over and over, from a buffer of that size, whose parts are shared out among the threads.
double measure_bandwidth(std::int64_t bytes, double seconds);

}  // namespace pygpt::cpu

#endif
