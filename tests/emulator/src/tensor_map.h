// CUtensorMap: 128 opaque bytes. These are the emulator's own; cuTensorMapEncodeTiled (runtime.cpp) makes them.
#pragma once
#include "program.h"

namespace emulator {

struct TensorMap {
    static constexpr u64 kMagic = 0x70616d726f736e74ull;
    u64 magic;
    u64 reserved;  // CUTLASS clears bit 21 of the second word of any map
    u64 address;
    u64 stride_bytes[5];  // of dimension 1, 2, ...; dimension 0 is dense
    u32 extent[5];
    u16 box[5];
    u8 element_stride[5];
    u8 element_bytes, rank, swizzle, fill_nan;  // swizzle: 0 none, 1 32 bytes, 2 64, 3 128
    Type type;                                  // of the elements: what reductions compute with
    u8 flushes;                                 // .ftz: their subnormals are zeros

    u32 box_bytes() const {
        u32 n = element_bytes;
        for (u32 d = 0; d < rank; ++d) n *= box[d];
        return n;
    }
};
static_assert(sizeof(TensorMap) <= 128);

// Swizzle<B,4,3>: bits 4 and up of a shared address are XORed with bits 7 and up, B of them.
inline u32 swizzled(u32 address, u32 mode) {
    static constexpr u32 masks[] = {0, 0x10, 0x30, 0x70};
    return address ^ (address >> 3 & masks[mode]);
}

}  // namespace emulator
