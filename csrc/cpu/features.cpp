#include "cpu/features.h"

namespace pygpt::cpu {

std::string why_not(Isa isa) {
    if (isa == Isa::scalar) return "";
#if defined(PYGPT_X86_KERNELS)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    switch (isa) {
        case Isa::scalar:
            return "";
        case Isa::avx2:
            return avx2 ? "" : "this processor has no AVX2 with FMA and F16C";
        case Isa::avx512:
            return avx512 ? "" : "this processor has no AVX-512 (F, BW, DQ, VL)";
        case Isa::avx512_bf16:
            return avx512 && __builtin_cpu_supports("avx512bf16") ? "" : "this processor has no AVX-512 BF16";
        case Isa::avx512_vnni:
            return avx512 && __builtin_cpu_supports("avx512vnni") ? "" : "this processor has no AVX-512 VNNI";
    }
#endif
    return "this build has no x86 kernels";
}

}  // namespace pygpt::cpu
