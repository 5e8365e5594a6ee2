// The part of DLPack (github.com/dmlc/dlpack, version 1) by which a tensor's pointer, shape and strides are read with
// one call of a C function. Newer torches offer it, through a table of functions in a capsule.
#ifndef PYGPT_BINDINGS_DLPACK_H
#define PYGPT_BINDINGS_DLPACK_H

#include <cstdint>

namespace pygpt::bindings::dlpack {

enum DeviceCode : std::int32_t { cpu = 1, cuda = 2 };
enum TypeCode : std::uint8_t { signed_integer = 0, unsigned_integer = 1, ieee_float = 2, brain_float = 4, boolean = 6 };

struct Tensor {
    void* data;
    std::int32_t device_type, device_index;
    std::int32_t dimensions;
    std::uint8_t type_code, type_bits;
    std::uint16_t type_lanes;
    std::int64_t *shape, *strides;  // the producer's
    std::uint64_t byte_offset;
};

struct ExchangeApi {
    std::uint32_t major_version, minor_version;
    const ExchangeApi* previous;
    void (*others[3])();                        // that make and own tensors
    int (*view)(void* py_object, Tensor* out);  // 0, or -1 with a Python exception set; may be null
    void (*current_stream)();
};

}  // namespace pygpt::bindings::dlpack

#endif
