// CUTLASS's own GEMMs, D (m, n) = A (m, k) B (k, n) in bf16 with fp32 results, for test_cutlass.py, which compiles this
// once a configuration: LAYOUT_A, LAYOUT_B (RowMajor or ColumnMajor), and for sm_90 SCHEDULE, EPILOGUE, CLUSTER_M,
// TILE_M. Nothing of CUTLASS is in this repository: its headers come from the package nvidia-cutlass.
#include <cuda_runtime.h>
#include <cutlass/cutlass.h>

#ifdef SCHEDULE
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>
#else
#include <cutlass/gemm/device/gemm.h>
#endif

using Element = cutlass::bfloat16_t;
using LayoutA = cutlass::layout::LAYOUT_A;
using LayoutB = cutlass::layout::LAYOUT_B;

#ifdef SCHEDULE
using Tile = cute::Shape<cute::Int<TILE_M>, cute::_128, cute::_64>;
using Cluster = cute::Shape<cute::Int<CLUSTER_M>, cute::_1, cute::_1>;
using Epilogue = cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto,
    float, float, float, cutlass::layout::RowMajor, 4, float, cutlass::layout::RowMajor, 4,
    cutlass::epilogue::EPILOGUE>::CollectiveOp;
using Mainloop = cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, LayoutA, 8, Element, LayoutB, 8, float, Tile, Cluster,
    cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(Epilogue::SharedStorage))>,
    cutlass::gemm::SCHEDULE>::CollectiveOp;
using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue>;
using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

Gemm::Arguments arguments(int m, int n, int k, const Element* a, const Element* b, const float* c, float* d) {
    const auto stride = [](auto s, int rows, int columns) {
        return cutlass::make_cute_packed_stride(s, {rows, columns, 1});
    };
    Gemm::Arguments args{cutlass::gemm::GemmUniversalMode::kGemm,
                         {m, n, k, 1},
                         {a, stride(Kernel::StrideA{}, m, k), b, stride(Kernel::StrideB{}, n, k)},
                         {{}, c, stride(Kernel::StrideC{}, m, n), d, stride(Kernel::StrideD{}, m, n)}};
    args.epilogue.thread.alpha = 1;
    args.epilogue.thread.beta = 1;
    args.hw_info = cutlass::KernelHardwareInfo::make_kernel_hardware_info<Kernel>(0, 4);
    return args;
}
#else
using Gemm = cutlass::gemm::device::Gemm<
    Element, LayoutA, Element, LayoutB, float, cutlass::layout::RowMajor, float, cutlass::arch::OpClassTensorOp,
    cutlass::arch::Sm80, cutlass::gemm::GemmShape<128, 128, 32>, cutlass::gemm::GemmShape<64, 64, 32>,
    cutlass::gemm::GemmShape<16, 8, 16>, cutlass::epilogue::thread::LinearCombination<float, 4, float, float>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, 3>;

Gemm::Arguments arguments(int m, int n, int k, const Element* a, const Element* b, const float* c, float* d) {
    const int lda = std::is_same_v<LayoutA, cutlass::layout::RowMajor> ? k : m;
    const int ldb = std::is_same_v<LayoutB, cutlass::layout::RowMajor> ? n : k;
    return {{m, n, k}, {a, lda}, {b, ldb}, {c, n}, {d, n}, {1, 1}};
}
#endif

namespace {
template <class T>
struct OnDevice {
    T* data;
    OnDevice(const T* host, std::size_t count) {
        cudaMalloc(&data, count * sizeof(T));
        cudaMemcpy(data, host, count * sizeof(T), cudaMemcpyHostToDevice);
    }
    ~OnDevice() { cudaFree(data); }
};
}  // namespace

// D = A B + C; null, or what went wrong.
extern "C" __attribute__((visibility("default"))) const char* gemm(int m, int n, int k, const Element* a,
                                                                   const Element* b, const float* c, float* d) {
    const OnDevice<Element> on_a(a, std::size_t(m) * k), on_b(b, std::size_t(k) * n);
    const OnDevice<float> on_c(c, std::size_t(m) * n), on_d(c, std::size_t(m) * n);
    Gemm gemm;
    const auto args = arguments(m, n, k, on_a.data, on_b.data, on_c.data, on_d.data);
    cutlass::Status status = gemm.can_implement(args);
    if (status != cutlass::Status::kSuccess) return cutlass::cutlassGetStatusString(status);
    void* workspace = nullptr;
    cudaMalloc(&workspace, Gemm::get_workspace_size(args) + 16);
    status = gemm.initialize(args, workspace);
    if (status == cutlass::Status::kSuccess) status = gemm.run();
    cudaFree(workspace);
    if (cudaDeviceSynchronize() != cudaSuccess) return cudaGetErrorString(cudaGetLastError());
    if (status != cutlass::Status::kSuccess) return cutlass::cutlassGetStatusString(status);
    cudaMemcpy(d, on_d.data, std::size_t(m) * n * sizeof(float), cudaMemcpyDeviceToHost);
    return nullptr;
}
