// The instruction sets that kernels are compiled for, and which of them this build has and this processor runs.
#ifndef PYGPT_CPU_FEATURES_H
#define PYGPT_CPU_FEATURES_H

#include <string>

namespace pygpt::cpu {

enum class Isa { scalar, avx2, avx512, avx512_bf16, avx512_vnni };

// Nothing if kernels of this set run here, else the reason why not.
std::string why_not(Isa isa);

}  // namespace pygpt::cpu

#endif
