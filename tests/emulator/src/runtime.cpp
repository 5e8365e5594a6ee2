// The CUDA runtime's entry points, as far as host code of kernels needs them, over the emulator. Linked instead of
// cudart. Device memory is host memory; streams and events do nothing, since every launch ends before it returns.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>

#include "launch.h"
#include "memory.h"
#include "options.h"
#include "tensor_map.h"

using namespace emulator;

namespace {

constexpr u32 kDefaultShared = 48 << 10;  // of a block whose kernel is not allowed more

// What nvcc embeds: a list of entries, each PTX text (kind 1) or machine code, for one architecture.
struct FatBinaryWrapper {
    int magic, version;
    const u8* data;
    void* unused;
};
struct Image {
    int arch;
    bool arch_specific;  // 90a: for no other architecture
    std::string ptx;
};
struct FatBinary {
    std::vector<Image> images;
    std::unique_ptr<Module> module;  // parsed at the first launch
};
struct HostFunction {
    FatBinary* binary = nullptr;
    std::string name;
    // By cudaFuncSetAttribute.
    std::optional<u32> allowed_dynamic_shared = {};
    bool large_clusters = false;  // of more than 8 blocks
};
struct HostVariable {
    FatBinary* binary = nullptr;
    std::string name;
};

std::map<const void*, HostFunction>& functions() {
    static auto* f = new std::map<const void*, HostFunction>;  // registered before main and used after it
    return *f;
}
std::map<const void*, HostVariable>& variables() {
    static auto* v = new std::map<const void*, HostVariable>;
    return *v;
}

cudaError_t last_error = cudaSuccess;
std::string last_report;

cudaError_t failed(cudaError_t code, const std::string& report) {
    last_error = code;
    last_report = report;
    std::fprintf(stderr, "pygpt emulator: %s\n", report.c_str());
    return code;
}

std::vector<Image> read_fat_binary(const u8* data) {
    const auto field = [](const u8* p, auto value) {
        std::memcpy(&value, p, sizeof value);
        return value;
    };
    std::vector<Image> images;
    const u8* entry = data + field(data + 6, u16{});
    const u8* end = entry + field(data + 8, u64{});
    while (entry + 64 <= end) {
        const u16 kind = field(entry, u16{});
        const u32 header = field(entry + 4, u32{});
        const u64 bytes = field(entry + 8, u64{});
        if (kind == 1) {
            std::string text(reinterpret_cast<const char*>(entry + header), bytes);
            const std::size_t target = text.find(".target sm_");
            if (target == std::string::npos) {
                std::fprintf(stderr, "pygpt emulator: the PTX is compressed; compile with --no-compress\n");
            } else {
                char* after = nullptr;
                const int arch = static_cast<int>(std::strtol(text.c_str() + target + 11, &after, 10));
                images.push_back({arch, *after == 'a' || *after == 'f', std::move(text)});
            }
        }
        entry += header + bytes;
    }
    return images;
}

Module& module_of(FatBinary& binary) {
    if (binary.module) return *binary.module;
    const Image* best = nullptr;
    const int arch = options().arch;
    for (const Image& i : binary.images) {
        if (i.arch_specific ? i.arch != arch : i.arch > arch) continue;
        if (!best || i.arch > best->arch || (i.arch == best->arch && i.arch_specific)) best = &i;
    }
    if (!best) throw ProgramError("the file holds no PTX for sm_" + std::to_string(arch));
    binary.module = parse_module(best->ptx);
    return *binary.module;
}

Kernel& kernel_of(const void* function) {
    const auto f = functions().find(function);
    if (f == functions().end()) throw ProgramError("the function is no kernel of this program");
    return link_kernel(module_of(*f->second.binary), f->second.name);
}

// What a launch may ask for: beyond the default of 48 KB, static shared memory included, what it was allowed.
u64 max_dynamic_shared(const void* function, const Kernel& k) {
    const auto& allowed = functions()[function].allowed_dynamic_shared;
    const u64 all = allowed ? shared_per_block_limit() : kDefaultShared;
    const u64 left = all > k.shared_static ? all - k.shared_static : 0;
    return allowed ? std::min<u64>(*allowed, left) : left;
}

cudaError_t run(const void* function, dim3 grid, dim3 block, void** arguments, std::size_t shared, dim3 cluster,
                bool early = false) {
    try {
        refresh_from_environment();
        Kernel& k = kernel_of(function);
        const std::string name = demangled(k.name);
        const u64 threads = static_cast<u64>(block.x) * block.y * block.z;
        if (k.cluster[0] && cluster.x * cluster.y * cluster.z == 1)
            cluster = dim3(k.cluster[0], k.cluster[1], k.cluster[2]);
        if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535 ||
            threads == 0 || threads > 1024 || block.z > 64 || (k.max_threads && threads > k.max_threads))
            return failed(cudaErrorInvalidConfiguration, name + ": grid or block out of range");
        if (shared > max_dynamic_shared(function, k))
            return failed(cudaErrorInvalidValue, name + ": " + std::to_string(shared) +
                                                     " bytes of dynamic shared memory are more than allowed");
        const u64 blocks = static_cast<u64>(cluster.x) * cluster.y * cluster.z;
        const u32 most = options().arch < 90 ? 1 : functions()[function].large_clusters ? 16 : 8;
        if (blocks == 0 || blocks > most || grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z)
            return failed(cudaErrorInvalidClusterSize,
                          name + ": the grid is no multiple of the cluster, or the cluster has more than " +
                              std::to_string(most) + " blocks");
        std::vector<u8> params(k.param_bytes + 64);
        for (std::size_t i = 0; i < k.params.size(); ++i)
            std::memcpy(params.data() + k.params[i].offset, arguments[i], k.params[i].size);
        launch(k, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, {cluster.x, cluster.y, cluster.z}, params,
               static_cast<u32>(shared), early);
    } catch (const Fault& fault) {
        return failed(cudaErrorLaunchFailure, fault.what());
    } catch (const ProgramError& error) {
        return failed(cudaErrorInvalidDeviceFunction, error.what());
    }
    return cudaSuccess;
}

void* symbol_address(const void* symbol) {
    const auto v = variables().find(symbol);
    return v == variables().end() ? nullptr : variable_address(module_of(*v->second.binary), v->second.name);
}

struct Configuration {
    dim3 grid, block;
    std::size_t shared;
    void* stream;
};
thread_local std::vector<Configuration> configurations;

}  // namespace

namespace emulator {
// The text of the last error, for bindings that turn it into an exception.
const std::string& last_error_report() {
    return last_report;
}
}  // namespace emulator

extern "C" {

// ---- What nvcc's generated code calls
void** __cudaRegisterFatBinary(void* wrapper) {
    auto* binary = new FatBinary;
    binary->images = read_fat_binary(static_cast<FatBinaryWrapper*>(wrapper)->data);
    return reinterpret_cast<void**>(binary);
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void** binary, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
    functions()[host] = {reinterpret_cast<FatBinary*>(binary), name};
}
void __cudaRegisterVar(void** binary, char* host, char*, const char* name, int, std::size_t, int, int) {
    variables()[host] = {reinterpret_cast<FatBinary*>(binary), name};
}
char __cudaInitModule(void**) {
    return 0;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared, void* stream) {
    configurations.push_back({grid, block, shared, stream});
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream) {
    const Configuration c = configurations.back();
    configurations.pop_back();
    *grid = c.grid, *block = c.block, *shared = c.shared;
    *static_cast<void**>(stream) = c.stream;
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(void** kernel, const void* function) {
    *kernel = const_cast<void*>(function);
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(void* kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared, void*) {
    return run(kernel, grid, block, arguments, shared, dim3(1, 1, 1));
}

// ---- Launches
cudaError_t cudaLaunchKernel(const void* f, dim3 grid, dim3 block, void** arguments, std::size_t shared, cudaStream_t) {
    return run(f, grid, block, arguments, shared, dim3(1, 1, 1));
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* f, void** arguments) {
    dim3 cluster(1, 1, 1);
    bool early = false;
    for (unsigned i = 0; i < config->numAttrs; ++i)
        if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) {
            const auto& c = config->attrs[i].val.clusterDim;
            cluster = dim3(c.x, c.y, c.z);
        } else if (config->attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization) {
            early = config->attrs[i].val.programmaticStreamSerializationAllowed != 0;
        }
    return run(f, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes, cluster, early);
}
cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                                        cudaStream_t) {
    try {
        const u64 most = static_cast<u64>(blocks_per_multiprocessor(kernel_of(f), block.x * block.y * block.z,
                                                                    static_cast<u32>(shared))) *
                         static_cast<u64>(options().multiprocessors);
        if (static_cast<u64>(grid.x) * grid.y * grid.z > most)
            return failed(cudaErrorCooperativeLaunchTooLarge,
                          "a cooperative launch of more blocks than are resident at a time");
    } catch (const ProgramError& error) {
        return failed(cudaErrorInvalidDeviceFunction, error.what());
    }
    return run(f, grid, block, arguments, shared, dim3(1, 1, 1));
}
cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute attribute, int value) {
    const auto found = functions().find(f);
    if (found == functions().end()) return cudaErrorInvalidDeviceFunction;
    if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) found->second.large_clusters = value != 0;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || static_cast<u32>(value) > shared_per_block_limit()) return cudaErrorInvalidValue;
    found->second.allowed_dynamic_shared = static_cast<u32>(value);
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* f) {
    try {
        const Kernel& k = kernel_of(f);
        *a = {};
        a->sharedSizeBytes = k.shared_static;
        a->maxThreadsPerBlock = k.max_threads ? static_cast<int>(k.max_threads) : 1024;
        a->numRegs = 64;  // not known from PTX
        a->ptxVersion = a->binaryVersion = options().arch;
        a->maxDynamicSharedSizeBytes = static_cast<int>(max_dynamic_shared(f, k));
    } catch (const ProgramError& error) {
        return failed(cudaErrorInvalidDeviceFunction, error.what());
    }
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f, int threads,
                                                                   std::size_t shared, unsigned) {
    try {
        *n = static_cast<int>(
            blocks_per_multiprocessor(kernel_of(f), static_cast<u32>(threads), static_cast<u32>(shared)));
    } catch (const ProgramError& error) {
        return failed(cudaErrorInvalidDeviceFunction, error.what());
    }
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void* f, int threads, std::size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, threads, shared, 0);
}
cudaError_t cudaOccupancyMaxActiveClusters(int* n, const void* f, const cudaLaunchConfig_t* config) {
    int blocks = 0;
    const dim3 b = config->blockDim;
    const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &blocks, f, static_cast<int>(b.x * b.y * b.z), config->dynamicSmemBytes);
    u32 cluster = 1;
    for (unsigned i = 0; i < config->numAttrs; ++i)
        if (config->attrs[i].id == cudaLaunchAttributeClusterDimension)
            cluster = config->attrs[i].val.clusterDim.x * config->attrs[i].val.clusterDim.y *
                      config->attrs[i].val.clusterDim.z;
    *n = blocks * options().multiprocessors / static_cast<int>(cluster);
    return error;
}

// ---- Memory
cudaError_t cudaMalloc(void** p, std::size_t bytes) {
    *p = device_allocate(bytes);
    return cudaSuccess;
}
cudaError_t cudaMallocManaged(void** p, std::size_t bytes, unsigned) {
    return cudaMalloc(p, bytes);
}
cudaError_t cudaMallocAsync(void** p, std::size_t bytes, cudaStream_t) {
    return cudaMalloc(p, bytes);
}
cudaError_t cudaFree(void* p) {
    device_free(p);
    return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t) {
    return cudaFree(p);
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
    forget_last_launch();
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void* p, int value, std::size_t bytes) {
    forget_last_launch();
    std::memset(p, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* p, int value, std::size_t bytes, cudaStream_t) {
    return cudaMemset(p, value, bytes);
}
cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, std::size_t bytes, std::size_t offset,
                               cudaMemcpyKind) {
    void* p = symbol_address(symbol);
    if (!p) return cudaErrorInvalidSymbol;
    std::memcpy(static_cast<u8*>(p) + offset, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, std::size_t bytes, std::size_t offset, cudaMemcpyKind) {
    const void* p = symbol_address(symbol);
    if (!p) return cudaErrorInvalidSymbol;
    std::memcpy(to, static_cast<const u8*>(p) + offset, bytes);
    return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void** p, const void* symbol) {
    *p = symbol_address(symbol);
    return *p ? cudaSuccess : cudaErrorInvalidSymbol;
}

// ---- Errors
cudaError_t cudaGetLastError() {
    return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
    return last_error;
}
const char* cudaGetErrorName(cudaError_t e) {
    switch (e) {
        case cudaSuccess:
            return "cudaSuccess";
        case cudaErrorInvalidValue:
            return "cudaErrorInvalidValue";
        case cudaErrorInvalidConfiguration:
            return "cudaErrorInvalidConfiguration";
        case cudaErrorInvalidClusterSize:
            return "cudaErrorInvalidClusterSize";
        case cudaErrorCooperativeLaunchTooLarge:
            return "cudaErrorCooperativeLaunchTooLarge";
        case cudaErrorLaunchFailure:
            return "cudaErrorLaunchFailure";
        default:
            return "cudaErrorEmulated";
    }
}
const char* cudaGetErrorString(cudaError_t e) {
    return e == cudaSuccess ? "no error" : last_report.c_str();
}
cudaError_t cudaDeviceSynchronize() {
    forget_last_launch();
    return last_error;
}

// ---- The device
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaGetDeviceCount(int* n) {
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor:
            *value = options().arch / 10;
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *value = options().arch % 10;
            break;
        case cudaDevAttrMultiProcessorCount:
            *value = options().multiprocessors;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *value = kDefaultShared;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = static_cast<int>(shared_per_block_limit());
            break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = static_cast<int>(shared_per_block_limit()) + 1024;
            break;
        case cudaDevAttrReservedSharedMemoryPerBlock:
            *value = 1024;
            break;
        case cudaDevAttrMaxThreadsPerBlock:
            *value = 1024;
            break;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            *value = options().arch == 86 ? 1536 : 2048;
            break;
        case cudaDevAttrMaxRegistersPerBlock:
        case cudaDevAttrMaxRegistersPerMultiprocessor:
            *value = 65536;
            break;
        case cudaDevAttrWarpSize:
            *value = kLanes;
            break;
        case cudaDevAttrL2CacheSize:
            *value = 50 << 20;
            break;
        case cudaDevAttrCooperativeLaunch:
            *value = 1;
            break;
        default:
            return failed(cudaErrorInvalidValue, "device attribute " + std::to_string(attribute) + " is not emulated");
    }
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    *p = {};
    std::snprintf(p->name, sizeof p->name, "emulated sm_%d", options().arch);
    p->major = options().arch / 10, p->minor = options().arch % 10;
    p->multiProcessorCount = options().multiprocessors;
    p->sharedMemPerBlock = kDefaultShared;
    p->sharedMemPerBlockOptin = shared_per_block_limit();
    p->sharedMemPerMultiprocessor = shared_per_block_limit() + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = options().arch == 86 ? 1536 : 2048;
    p->warpSize = kLanes;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->totalGlobalMem = 1ull << 34;
    p->l2CacheSize = 50 << 20;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    return cudaDriverGetVersion(version);
}

// ---- Streams and events: everything has happened already
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = nullptr;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    return cudaStreamCreate(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    forget_last_launch();
    return last_error;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
    *event = nullptr;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) {
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
    *milliseconds = 0;
    return cudaSuccess;
}

// ---- Tensor maps, with the limits of the driver API ("Tensor Map Object Management")
CUresult cuTensorMapEncodeTiled(CUtensorMap* out, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* extents, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
    static const std::map<CUtensorMapDataType, Type> types = {
        {CU_TENSOR_MAP_DATA_TYPE_UINT8, Type::u8},        {CU_TENSOR_MAP_DATA_TYPE_UINT16, Type::u16},
        {CU_TENSOR_MAP_DATA_TYPE_UINT32, Type::u32},      {CU_TENSOR_MAP_DATA_TYPE_INT32, Type::s32},
        {CU_TENSOR_MAP_DATA_TYPE_UINT64, Type::u64},      {CU_TENSOR_MAP_DATA_TYPE_INT64, Type::s64},
        {CU_TENSOR_MAP_DATA_TYPE_FLOAT16, Type::f16},     {CU_TENSOR_MAP_DATA_TYPE_FLOAT32, Type::f32},
        {CU_TENSOR_MAP_DATA_TYPE_FLOAT64, Type::f64},     {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, Type::bf16},
        {CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ, Type::f32}, {CU_TENSOR_MAP_DATA_TYPE_TFLOAT32, Type::tf32}};
    const auto element = types.find(type);
    if (element == types.end() || rank < 1 || rank > 5 || reinterpret_cast<u64>(address) % 16 ||
        reinterpret_cast<u64>(out) % 64 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE ||
        swizzle > CU_TENSOR_MAP_SWIZZLE_128B)
        return CUDA_ERROR_INVALID_VALUE;
    TensorMap map{};
    map.magic = TensorMap::kMagic;
    map.address = reinterpret_cast<u64>(address);
    map.rank = static_cast<u8>(rank);
    map.element_bytes = static_cast<u8>(size_of(element->second));
    map.type = element->second;
    map.flushes = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ;
    map.swizzle = static_cast<u8>(swizzle);
    map.fill_nan = fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
    for (u32 d = 0; d < rank; ++d) {
        if (extents[d] == 0 || extents[d] > 1ull << 32 || box[d] == 0 || box[d] > 256 || element_strides[d] == 0 ||
            element_strides[d] > 8)
            return CUDA_ERROR_INVALID_VALUE;
        map.extent[d] = static_cast<u32>(extents[d]);
        map.box[d] = static_cast<u16>(box[d]);
        map.element_stride[d] = static_cast<u8>(element_strides[d]);
        if (d + 1 == rank) break;
        if (strides[d] % 16 || strides[d] >= 1ull << 40) return CUDA_ERROR_INVALID_VALUE;
        map.stride_bytes[d] = strides[d];
    }
    static constexpr u32 swizzle_bytes[] = {~0u, 32, 64, 128};
    const u32 inner = box[0] * map.element_bytes;
    if (inner % 16 || inner > swizzle_bytes[swizzle]) return CUDA_ERROR_INVALID_VALUE;
    std::memset(static_cast<void*>(out), 0, sizeof *out);
    std::memcpy(static_cast<void*>(out), &map, sizeof map);
    return CUDA_SUCCESS;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
    const bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
    *function = known ? reinterpret_cast<void*>(cuTensorMapEncodeTiled) : nullptr;
    if (result) *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return known ? cudaSuccess : cudaErrorSymbolNotFound;
}
cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long flags,
                                    cudaDriverEntryPointQueryResult* result) {
    return cudaGetDriverEntryPointByVersion(name, function, 12000, flags, result);
}

}  // extern "C"
