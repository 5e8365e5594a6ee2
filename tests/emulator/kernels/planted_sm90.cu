// Planted bugs, sm_90a: asynchronous copies, mbarriers, wgmma, clusters. As planted.cu.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define KERNEL extern "C" __global__ void

__device__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ void init(uint64_t* bar, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
__device__ void fence_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ void fence_proxy() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ void arrive(uint64_t* bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
__device__ void expect(uint64_t* bar, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
                 : "memory");
}
__device__ bool try_wait(uint64_t* bar, unsigned parity) {
    unsigned done;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(shared_address(bar)), "r"(parity)
                 : "memory");
    return done;
}
__device__ void wait(uint64_t* bar, unsigned parity) {
    while (!try_wait(bar, parity)) {
    }
}
__device__ void bulk_load(void* to, const void* from, unsigned bytes, uint64_t* bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(bar))
                 : "memory");
}
__device__ void bulk_store(void* to, const void* from, unsigned bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)),
                 "r"(bytes)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
__device__ void bulk_add(float* to, const void* from, unsigned bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
                 "r"(shared_address(from)), "r"(bytes)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
__device__ void wait_read() {
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ void wait_written() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

enum Step { kRight, kNoWait, kWrongParity, kWrongBytes, kTryOnce, kNoInitFence, kNoInitBarrier, kNoInit };

__device__ void load_and_use(float* out, const float* in, Step step) {
    __shared__ __align__(128) float s[512];
    __shared__ uint64_t bar;
    if (threadIdx.x == 0 && step != kNoInit) {
        init(&bar, 1);
        if (step != kNoInitFence) fence_init();
    }
    if (step != kNoInitBarrier) __syncthreads();
    if (threadIdx.x == 0) {
        expect(&bar, step == kWrongBytes ? 2064 : 2048);
        bulk_load(s, in, 2048, &bar);
    }
    if (step == kTryOnce)
        try_wait(&bar, 0);
    else if (step != kNoWait)
        wait(&bar, step == kWrongParity ? 1 : 0);
    out[threadIdx.x] = s[threadIdx.x];
    __syncthreads();
    if (step != kWrongBytes) wait(&bar, 0);  // nobody leaves while the copy is in flight
}
KERNEL load_without_wait(float* out, const float* in, int wrong) {
    load_and_use(out, in, wrong ? kNoWait : kRight);
}
KERNEL load_wrong_parity(float* out, const float* in, int wrong) {
    load_and_use(out, in, wrong ? kWrongParity : kRight);
}
KERNEL load_wrong_bytes(float* out, const float* in, int wrong) {
    load_and_use(out, in, wrong ? kWrongBytes : kRight);
}
KERNEL load_try_once(float* out, const float* in, int wrong) {
    load_and_use(out, in, wrong ? kTryOnce : kRight);
}
KERNEL init_without_fence(float* out, const float* in, int wrong) {
    load_and_use(out, in, wrong ? kNoInitFence : kRight);
}
KERNEL init_without_barrier(float* out, const float* in, int wrong) {
    load_and_use(out, in, wrong ? kNoInitBarrier : kRight);
}
KERNEL barrier_without_init(float* out, const float* in, int wrong) {
    load_and_use(out, in, wrong ? kNoInit : kRight);
}

// A load that nobody waits for, and whose block ends.
KERNEL load_in_flight_at_end(float* out, const float* in, int wrong) {
    __shared__ __align__(128) float s[512];
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) {
        init(&bar, 1);
        fence_init();
        expect(&bar, 2048);
        bulk_load(s, in, 2048, &bar);
        if (!wrong) wait(&bar, 0);
    }
    out[threadIdx.x] = 1;
}

KERNEL too_many_arrivals(float* out, const float*, int wrong) {
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) init(&bar, wrong ? 127 : 128);
    __syncthreads();
    const bool late = threadIdx.x == 127;
    if (!late) arrive(&bar);
    if (wrong) {
        // The 128th arrival falls into the next phase, and so does one of each round: the phase fills up too early.
        if (late)
            for (int i = 0; i < 3; ++i)
                asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&bar)), "r"(64));
    } else if (late) {
        arrive(&bar);
    }
    wait(&bar, 0);
    out[threadIdx.x] = 1;
}

enum StoreStep { kStoreRight, kStoreNoFence, kStoreReuse, kStoreNoWait };
__device__ void store(float* out, const float* in, StoreStep step) {
    __shared__ __align__(128) float s[128];
    s[threadIdx.x] = in[threadIdx.x];
    if (step != kStoreNoFence) fence_proxy();
    __syncthreads();
    if (threadIdx.x == 0) {
        bulk_store(out, s, 512);
        if (step == kStoreReuse) s[0] = 7;
        if (step != kStoreNoWait) wait_read();
    }
}
KERNEL store_without_fence(float* out, const float* in, int wrong) {
    store(out, in, wrong ? kStoreNoFence : kStoreRight);
}
KERNEL store_source_reused(float* out, const float* in, int wrong) {
    store(out, in, wrong ? kStoreReuse : kStoreRight);
}
KERNEL store_without_wait(float* out, const float* in, int wrong) {
    store(out, in, wrong ? kStoreNoWait : kStoreRight);
}

// The source may be used again, but global memory may not hold the numbers yet.
KERNEL store_read_early(float* out, const float* in, int wrong) {
    __shared__ __align__(128) float s[128];
    s[threadIdx.x] = in[threadIdx.x];
    fence_proxy();
    __syncthreads();
    if (threadIdx.x == 0) {
        bulk_store(out, s, 512);
        if (wrong)
            wait_read();
        else
            wait_written();
    }
    __syncthreads();
    out[512 + threadIdx.x] = out[threadIdx.x] + 1;
    if (threadIdx.x == 0) wait_written();
}

// A copy engine reads what ordinary stores of the same kernel wrote to global memory.
KERNEL load_without_global_fence(float* out, const float* in, int wrong) {
    __shared__ __align__(128) float s[128];
    __shared__ uint64_t bar;
    out[threadIdx.x] = in[threadIdx.x] + 1;
    if (threadIdx.x == 0) {
        init(&bar, 1);
        fence_init();
    }
    if (wrong)
        fence_proxy();  // of shared memory alone
    else
        asm volatile("fence.proxy.async.global;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        expect(&bar, 512);
        bulk_load(s, out, 512, &bar);
    }
    wait(&bar, 0);
    out[512 + threadIdx.x] = s[threadIdx.x];
}

// Blocks add to the same numbers in their order: each is told by the one before, when its sums have arrived.
KERNEL sums_in_turns(float* out, const float* in, int wrong) {
    __shared__ __align__(128) float s[128];
    s[threadIdx.x] = in[threadIdx.x] + 0.1f * static_cast<float>(blockIdx.x);
    fence_proxy();
    __syncthreads();
    if (threadIdx.x > 0) return;
    unsigned* turn = reinterpret_cast<unsigned*>(out + 1023);
    unsigned seen = 0;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(turn) : "memory");
    } while (seen != blockIdx.x);
    bulk_add(out, s, 512);
    if (wrong)
        wait_read();
    else
        wait_written();
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(turn), "r"(blockIdx.x + 1) : "memory");
}

// ---- wgmma: D (64, 8) = A (64, 16) B (16, 8), both K-major without swizzle: 8 x 16-byte core matrices.
__device__ uint64_t descriptor(const void* p, unsigned leading, unsigned stride) {
    return static_cast<uint64_t>((shared_address(p) & 0x3ffff) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
           static_cast<uint64_t>(stride >> 4) << 32;
}
__device__ void wgmma(float (&d)[4], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 0, 1, 1, 0, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "l"(a), "l"(b));
}
enum MatrixStep {
    kMatrixRight,
    kMatrixNoFence,
    kMatrixNoWait,
    kMatrixOverwrite,
    kMatrixDescriptors,
    kMatrixTwoPlaces,
    kMatrixThreeWarps
};
__device__ void multiply(float* out, const float* in, MatrixStep step) {
    __shared__ __align__(128) __nv_bfloat16 a[64 * 16];
    __shared__ __align__(128) __nv_bfloat16 b[8 * 16];
    for (int i = threadIdx.x; i < 64 * 16; i += 128) a[i] = __float2bfloat16(in[i % 128]);
    b[threadIdx.x] = __float2bfloat16(in[threadIdx.x]);
    if (step != kMatrixNoFence) fence_proxy();
    __syncthreads();
    // Two core matrices along k, 128 bytes apart; groups of 8 rows 256 bytes apart.
    const uint64_t da = descriptor(a, 128, 256) + (step == kMatrixDescriptors && threadIdx.x >= 96 ? 16 : 0),
                   db = descriptor(b, 128, 256);
    float d[4] = {0, 0, 0, 0};
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    if (step != kMatrixTwoPlaces && step != kMatrixThreeWarps)
        wgmma(d, da, db);
    else if (threadIdx.x < 96)
        wgmma(d, da, db);
    else if (step == kMatrixTwoPlaces)
        wgmma(d, db, da);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    if (step == kMatrixOverwrite) b[threadIdx.x] = __float2bfloat16(0);
    if (step == kMatrixNoWait)
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    else
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = d[i];
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}
KERNEL wgmma_without_fence(float* out, const float* in, int wrong) {
    multiply(out, in, wrong ? kMatrixNoFence : kMatrixRight);
}
KERNEL wgmma_without_wait(float* out, const float* in, int wrong) {
    multiply(out, in, wrong ? kMatrixNoWait : kMatrixRight);
}
KERNEL wgmma_operand_changed(float* out, const float* in, int wrong) {
    multiply(out, in, wrong ? kMatrixOverwrite : kMatrixRight);
}
KERNEL wgmma_descriptors(float* out, const float* in, int wrong) {
    multiply(out, in, wrong ? kMatrixDescriptors : kMatrixRight);
}
KERNEL wgmma_two_places(float* out, const float* in, int wrong) {
    multiply(out, in, wrong ? kMatrixTwoPlaces : kMatrixRight);
}
KERNEL wgmma_three_warps(float* out, const float* in, int wrong) {
    multiply(out, in, wrong ? kMatrixThreeWarps : kMatrixRight);
}

// What must happen to registers around a wgmma, in one asm block, so that the compiler moves nothing.
enum RegisterStep { kNeverFenced = 1, kScaledUnfenced, kFragmentUnfenced, kFragmentOverwritten, kFragmentInFlight };
__device__ void registers(float* out, const float* in, int step) {
    __shared__ __align__(128) __nv_bfloat16 b[8 * 16];
    b[threadIdx.x] = __float2bfloat16(in[threadIdx.x]);
    fence_proxy();
    __syncthreads();
    const uint64_t db = descriptor(b, 128, 256);
    float d[4] = {0, 0, 0, 0};
    asm volatile(
        "{\n"
        ".reg .pred first, scaled, fragment, overwritten, chained; .reg .b32 a<4>, e<4>;\n"
        "setp.ne.s32 first, %5, 1; setp.ne.s32 scaled, %5, 2; setp.ne.s32 fragment, %5, 3;\n"
        "setp.eq.s32 overwritten, %5, 4; setp.eq.s32 chained, %5, 5;\n"
        "mov.b32 a0, 0x3f803f80; mov.b32 a1, a0; mov.b32 a2, a0; mov.b32 a3, a0;\n"
        "@first wgmma.fence.sync.aligned;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, {a0, a1, a2, a3}, %4, 1, 1, 1, 0;\n"
        "wgmma.commit_group.sync.aligned;\n"
        "@overwritten add.u32 a0, a0, 1;\n"
        "@!chained wgmma.wait_group.sync.aligned 0;\n"
        "@chained wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16 {e0, e1}, {a0, a1, a2, a3}, %4, 0, 1, 1, 0;\n"
        "@chained wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16 {e2, e3}, {e0, e1, a2, a3}, %4, 0, 1, 1, 0;\n"
        "mul.f32 %0, %0, 0f3F000000;\n"
        "@scaled wgmma.fence.sync.aligned;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, {a0, a1, a2, a3}, %4, 1, 1, 1, 0;\n"
        "wgmma.commit_group.sync.aligned;\n"
        "wgmma.wait_group.sync.aligned 0;\n"
        "shl.b32 a0, a0, 1;\n"
        "@fragment wgmma.fence.sync.aligned;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, {a0, a1, a2, a3}, %4, 1, 1, 1, 0;\n"
        "wgmma.commit_group.sync.aligned;\n"
        "wgmma.wait_group.sync.aligned 0;\n"
        "}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "l"(db), "r"(step)
        : "memory");
    for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = d[i];
}
KERNEL wgmma_never_fenced(float* out, const float* in, int wrong) {
    registers(out, in, wrong ? kNeverFenced : 0);
}
KERNEL wgmma_accumulator_unfenced(float* out, const float* in, int wrong) {
    registers(out, in, wrong ? kScaledUnfenced : 0);
}
KERNEL wgmma_fragment_unfenced(float* out, const float* in, int wrong) {
    registers(out, in, wrong ? kFragmentUnfenced : 0);
}
KERNEL wgmma_fragment_overwritten(float* out, const float* in, int wrong) {
    registers(out, in, wrong ? kFragmentOverwritten : 0);
}
KERNEL wgmma_fragment_in_flight(float* out, const float* in, int wrong) {
    registers(out, in, wrong ? kFragmentInFlight : 0);
}

// ---- Clusters of two
__device__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
}
__device__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}
__device__ float of_neighbour(const float* p) {
    float x;
    asm volatile(
        "{ .reg .u32 a, r; mov.u32 r, %%cluster_ctarank; xor.b32 r, r, 1; mapa.shared::cluster.u32 a, %1, r; "
        "ld.shared::cluster.f32 %0, [a]; }"
        : "=f"(x)
        : "r"(shared_address(p))
        : "memory");
    return x;
}
KERNEL neighbour_race(float* out, const float* in, int wrong) {
    __shared__ float s[128];
    s[threadIdx.x] = 0;
    cluster_arrive();
    cluster_wait();
    s[threadIdx.x] = in[threadIdx.x];
    if (wrong) __syncthreads();
    cluster_arrive();
    if (!wrong) cluster_wait();
    out[blockIdx.x * 128 + threadIdx.x] = of_neighbour(s + threadIdx.x);
    if (wrong) cluster_wait();
    cluster_arrive();
    cluster_wait();
}
KERNEL neighbour_ended(float* out, const float* in, int wrong) {
    __shared__ float s[128];
    s[threadIdx.x] = in[threadIdx.x];
    cluster_arrive();
    cluster_wait();
    if (wrong && blockIdx.x == 1) return;
    if (wrong) {
        for (int i = 0; i < 2000; ++i) __nanosleep(100);
    }
    out[blockIdx.x * 128 + threadIdx.x] = of_neighbour(s + threadIdx.x);
    cluster_arrive();
    cluster_wait();
}
KERNEL cluster_barrier_twice(float* out, const float*, int wrong) {
    cluster_arrive();
    if (wrong) cluster_arrive();
    cluster_wait();
    out[threadIdx.x + blockIdx.x * 128] = 1;
}

// ---- Launches that begin before the one before has ended (programmatic dependent launch)
__device__ void wait_for_launch() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
KERNEL leader(float* out, const float* in) {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    out[threadIdx.x] = in[threadIdx.x] + 1;
}
KERNEL leader_that_lets_nobody_begin(float* out, const float* in) {
    out[threadIdx.x] = in[threadIdx.x] + 1;
}
// One warp waits for all, since barriers pass on what it knows.
KERNEL reads_early(float* out, const float* in, int wrong) {
    if (threadIdx.x < 32) wait_for_launch();
    if (!wrong) __syncthreads();
    out[threadIdx.x] = in[threadIdx.x];
}
KERNEL writes_early(float* out, const float*, int wrong) {
    if (!wrong) wait_for_launch();
    out[threadIdx.x] = 3;
    if (wrong) wait_for_launch();
}
KERNEL never_waits(float* out, const float*, int wrong) {
    if (!wrong) wait_for_launch();
    out[threadIdx.x] = 3;
}

// Dynamic shared memory is declared with 16-byte alignment, and a swizzled or tensor destination needs more.
KERNEL dynamic_alignment(float* out, const float* in, int wrong) {
    extern __shared__ __align__(16) char dynamic[];
    char* base = wrong ? dynamic : reinterpret_cast<char*>((reinterpret_cast<uint64_t>(dynamic) + 127) & ~127ull);
    float* s = reinterpret_cast<float*>(base);
    if (shared_address(s) % 128) __trap();  // what a tensor copy would do
    s[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = s[threadIdx.x];
}
