// A C interface for Python's ctypes (tests/emulator/device.py): PTX text in, launches with arguments as bytes, errors
// as text.
#include <cuda.h>

#include <cstring>

#include "launch.h"
#include "linker.h"
#include "memory.h"
#include "options.h"

using namespace emulator;

namespace {

std::string message;  // of the last failure

template <class F>
int guarded(F f) {
    try {
        f();
        return 0;
    } catch (const std::exception& e) {
        message = e.what();
        return 1;
    }
}

const char* keep(std::string text) {
    static std::string kept;
    kept = std::move(text);
    return kept.c_str();
}

}  // namespace

#define PYGPT_EMULATOR_API extern "C" __attribute__((visibility("default")))

PYGPT_EMULATOR_API const char* pygpt_emulator_error() {
    return message.c_str();
}

PYGPT_EMULATOR_API int pygpt_emulator_set_option(const char* name, const char* value) {
    return guarded([&] {
        if (!set_option(name, value)) throw ProgramError(std::string("the emulator has no option ") + name);
    });
}

PYGPT_EMULATOR_API void pygpt_emulator_register(const void* p, std::size_t bytes, int writable) {
    device_register(p, bytes, writable != 0);
}
PYGPT_EMULATOR_API void pygpt_emulator_unregister(const void* p) {
    device_unregister(p);
}

// Null if the text cannot be parsed.
PYGPT_EMULATOR_API void* pygpt_emulator_load(const char* ptx) {
    Module* module = nullptr;
    guarded([&] { module = parse_module(ptx).release(); });
    return module;
}
PYGPT_EMULATOR_API void pygpt_emulator_unload(void* module) {
    forget_last_launch();
    delete static_cast<Module*>(module);
}

// The names of a module's kernels, one a line.
PYGPT_EMULATOR_API const char* pygpt_emulator_kernels(void* module) {
    std::string names;
    for (const auto& [name, f] : static_cast<Module*>(module)->functions)
        if (f.is_kernel) names += name + "\n";
    return keep(names);
}

// A kernel's synchronising instructions: "PTX line<tab>source line<tab>text", one a line. For the mutation tool.
PYGPT_EMULATOR_API const char* pygpt_emulator_synchronisation(void* module, const char* kernel) {
    std::string text;
    guarded([&] {
        Module& m = *static_cast<Module*>(module);
        for (const Instruction& in : link_kernel(m, kernel).code)
            if (is_synchronising(in))
                text += std::to_string(in.line) + "\t" + describe(m, in.source) + "\t" + line_of(m, in.line) + "\n";
    });
    return keep(text);
}

// `dims`: grid, block, cluster, three each. `arguments`: one pointer a parameter. `early`: see launch.h.
PYGPT_EMULATOR_API int pygpt_emulator_launch(void* module, const char* name, const unsigned* dims,
                                             unsigned dynamic_shared, const void* const* arguments, unsigned count,
                                             int early) {
    return guarded([&] {
        refresh_tools();
        Kernel& k = link_kernel(*static_cast<Module*>(module), name);
        if (count != k.params.size())
            throw ProgramError(std::string(name) + " takes " + std::to_string(k.params.size()) + " arguments, " +
                               std::to_string(count) + " came");
        std::vector<u8> params(k.param_bytes + 64);
        for (unsigned i = 0; i < count; ++i)
            std::memcpy(params.data() + k.params[i].offset, arguments[i], k.params[i].size);
        const auto dim = [&](int i) { return Dim{dims[i], dims[i + 1], dims[i + 2]}; };
        launch(k, dim(0), dim(3), dim(6), params, dynamic_shared, early != 0);
    });
}

// Encodes a tensor map as the driver API does: 128 bytes at `out`. `strides`: bytes, one less than `rank`.
PYGPT_EMULATOR_API int pygpt_emulator_tensor_map(void* out, int type, unsigned rank, void* address,
                                                 const unsigned long long* extents, const unsigned long long* strides,
                                                 const unsigned* box, const unsigned* element_strides, int swizzle,
                                                 int fill_nan) {
    static_assert(sizeof(unsigned long long) == sizeof(cuuint64_t));
    return cuTensorMapEncodeTiled(static_cast<CUtensorMap*>(out), static_cast<CUtensorMapDataType>(type), rank, address,
                                  reinterpret_cast<const cuuint64_t*>(extents),
                                  reinterpret_cast<const cuuint64_t*>(strides), box, element_strides,
                                  CU_TENSOR_MAP_INTERLEAVE_NONE, static_cast<CUtensorMapSwizzle>(swizzle),
                                  CU_TENSOR_MAP_L2_PROMOTION_NONE, static_cast<CUtensorMapFloatOOBfill>(fill_nan));
}

PYGPT_EMULATOR_API const char* pygpt_emulator_take_counts() {
    return keep(take_counts());
}
