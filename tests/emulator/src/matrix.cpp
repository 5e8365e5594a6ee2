// Matrix instructions: ldmatrix, stmatrix, movmatrix, mma.sync, wgmma. How fragments lie in registers and shared
// memory; the arithmetic is tensor_core.cpp's. PTX ISA: 9.7.14.5 "Matrix multiply-accumulate operation using mma
// instruction" (fragments: .7 to .10; mma .14, ldmatrix .15, stmatrix .16, movmatrix .17), 9.7.15 "Asynchronous
// Warpgroup Level Matrix Multiply-Accumulate Instructions" (fragments 9.7.15.5.1.1, layouts 9.7.15.5.1.2, fence and
// groups 9.7.15.7).
#include <algorithm>
#include <cstring>

#include "instructions.h"
#include "linker.h"
#include "matrix.h"
#include "memory.h"
#include "options.h"
#include "shadow.h"
#include "tensor_core.h"
#include "tensor_map.h"

namespace emulator {
namespace {

// All lanes of the warp must be there: `.aligned`.
bool converged(Warp& w, LaneMask lanes) {
    if (lanes != kAllLanes) return false;
    ++w.epoch;
    return true;
}

// ---- ldmatrix, stmatrix: 8 x 8 matrices of 16-bit numbers; lane 8 m + r holds the address of row r of matrix m. Lane
// l has elements (l / 4, 2 (l % 4)) and the next one; with .trans those of the transposed matrix. variant: 1 stores;
// flags: .trans.
Flow execute_matrix_move(Warp& w, const Instruction& in, LaneMask lanes) {
    if (!converged(w, lanes)) return Flow::wait;
    const bool stores = in.variant, transposed = in.flags;
    const Operand& address = in.operands[stores ? 0 : 1];
    const std::vector<Operand>& registers = in.operands[stores ? 1 : 0].parts;
    for (std::size_t m = 0; m < registers.size(); ++m) {
        u8* rows[8];
        u32 offsets[kLanes] = {};
        for (u32 r = 0; r < 8; ++r) {
            w.lane = static_cast<int>(8 * m + r);
            Block* block;
            u32 offset;
            rows[r] = shared_pointer(w, w.address(address, w.lane), 16, block, offset);
            check_aligned(w, offset, 16, "matrix row");
            w.lane = -1;  // what lanes write here, others may read at once
            if (stores)
                shared_write(w, actor(w), *block, offset, 16);
            else
                shared_read(w, actor(w), *block, offset, 16);
            for (u32 k = 0; k < 4; ++k) offsets[4 * r + k] = offset + 4 * k;
        }
        if (grid_of(w).counters.on) grid_of(w).counters.shared_access(w.current->index, offsets, kAllLanes, 4);
        u32* d = w.reg32(registers[m].slot);
        for (u32 lane = 0; lane < kLanes; ++lane)
            for (u32 h = 0; h < 2; ++h) {
                const u32 i = lane / 4, j = lane % 4 * 2 + h, row = transposed ? j : i, column = transposed ? i : j;
                u8* element = rows[row] + 2 * column;
                u16 x;
                if (stores) {
                    x = static_cast<u16>(d[lane] >> (16 * h));
                    std::memcpy(element, &x, 2);
                } else {
                    std::memcpy(&x, element, 2);
                    d[lane] = h ? (d[lane] & 0xffff) | static_cast<u32>(x) << 16 : x;
                }
            }
    }
    if (stores) grid_of(w).effect();
    return Flow::next;
}

// movmatrix: the transpose of a matrix held in registers.
Flow execute_matrix_transpose(Warp& w, const Instruction& in, LaneMask lanes) {
    if (!converged(w, lanes)) return Flow::wait;
    u16 m[8][8];
    const u32* a = w.reg32(in.src[0]);
    for (u32 l = 0; l < kLanes; ++l)
        for (u32 h = 0; h < 2; ++h) m[l / 4][l % 4 * 2 + h] = static_cast<u16>(a[l] >> (16 * h));
    u32* d = w.reg32(in.dst);
    for (u32 l = 0; l < kLanes; ++l) d[l] = m[l % 4 * 2][l / 4] | static_cast<u32>(m[l % 4 * 2 + 1][l / 4]) << 16;
    return Flow::next;
}

// ---- mma.sync m16n8k*. A register holds e = 4 / bytes elements along k. With g = lane / 4 and t = lane % 4:
//   A register q: row g + 8 (q % 2), k = t e + 4 e (q / 2) and up;  B register q: column g, k = t e + 4 e q and up;
//   C, D in 32 bits, register q: row g + 8 (q / 2), column 2 t + q % 2;  in 16 bits, register q: row g + 8 q, columns 2
//   t, 2 t + 1.
constexpr u32 kRows = 16, kColumns = 8, kMostK = 64;

u32 element_of(u32 word, u32 index, u32 bytes) {
    return bytes == 4 ? word : word >> (8 * bytes * index) & ((1u << (8 * bytes)) - 1);
}

void load_fragments_a(Warp& w, const std::vector<Operand>& registers, u32 bytes, u32 k, u32* a) {
    const u32 e = 4 / bytes;
    for (u32 q = 0; q < registers.size(); ++q) {
        const u32* x = w.reg32(registers[q].slot);
        for (u32 l = 0; l < kLanes; ++l)
            for (u32 h = 0; h < e; ++h)
                a[(l / 4 + 8 * (q % 2)) * k + l % 4 * e + 4 * e * (q / 2) + h] = element_of(x[l], h, bytes);
    }
}

void load_fragments_b(Warp& w, const std::vector<Operand>& registers, u32 bytes, u32* b) {
    const u32 e = 4 / bytes;
    for (u32 q = 0; q < registers.size(); ++q) {
        const u32* x = w.reg32(registers[q].slot);
        for (u32 l = 0; l < kLanes; ++l)
            for (u32 h = 0; h < e; ++h) b[(l % 4 * e + 4 * e * q + h) * kColumns + l / 4] = element_of(x[l], h, bytes);
    }
}

Flow execute_mma(Warp& w, const Instruction& in, LaneMask lanes) {
    if (!converged(w, lanes)) return Flow::wait;
    const u32 k = in.count;
    const TensorInput input = static_cast<TensorInput>(in.variant);
    const u32 bytes = static_cast<u32>(bytes_of(input));
    u32 a[kRows * kMostK], b[kMostK * kColumns];
    float d[kRows * kColumns];
    load_fragments_a(w, in.operands[1].parts, bytes, k, a);
    load_fragments_b(w, in.operands[2].parts, bytes, b);
    const std::vector<Operand>& c_registers = in.operands[3].parts;
    for (u32 q = 0; q < c_registers.size(); ++q) {
        const u32* x = w.reg32(c_registers[q].slot);
        for (u32 l = 0; l < kLanes; ++l) {
            const u32 g = l / 4, t = l % 4;
            if (in.type2 == Type::f32) {
                d[(g + 8 * (q / 2)) * kColumns + 2 * t + q % 2] = std::bit_cast<float>(x[l]);
            } else {
                d[(g + 8 * q) * kColumns + 2 * t] = half_to_float(static_cast<u16>(x[l]));
                d[(g + 8 * q) * kColumns + 2 * t + 1] = half_to_float(static_cast<u16>(x[l] >> 16));
            }
        }
    }
    if (options().fast_mma)
        fused_multiply_add(a, b, d, kRows, kColumns, static_cast<int>(k), kColumns, input);
    else
        tensor_core(a, b, d, kRows, kColumns, static_cast<int>(k), kColumns, input, mma_model(options().arch, input));
    const std::vector<Operand>& d_registers = in.operands[0].parts;
    for (u32 q = 0; q < d_registers.size(); ++q) {
        u32* x = w.reg32(d_registers[q].slot);
        for (u32 l = 0; l < kLanes; ++l) {
            const u32 g = l / 4, t = l % 4;
            if (in.type == Type::f32)
                x[l] = std::bit_cast<u32>(d[(g + 8 * (q / 2)) * kColumns + 2 * t + q % 2]);
            else
                x[l] = float_to_half(d[(g + 8 * q) * kColumns + 2 * t]) |
                       static_cast<u32>(float_to_half(d[(g + 8 * q) * kColumns + 2 * t + 1])) << 16;
        }
    }
    if (grid_of(w).counters.on)
        grid_of(w).counters.by_instruction[w.current->index].tensor_macs += kRows * kColumns * k;
    return Flow::next;
}

// Integers: exact in 32 bits, wrapping; .satfinite clamps. d (rows, columns) += a (rows, k) b (k, columns).
void multiply_integers(const u32* a, const u32* b, i32* d, u32 rows, u32 columns, u32 k, Type a_type, Type b_type,
                       bool clamps) {
    const auto value = [](u32 x, Type type) {
        return type == Type::s8 ? static_cast<i32>(static_cast<i8>(x)) : static_cast<i32>(x);
    };
    for (u32 i = 0; i < rows; ++i)
        for (u32 j = 0; j < columns; ++j) {
            i64 sum = d[i * columns + j];
            for (u32 x = 0; x < k; ++x)
                sum += static_cast<i64>(value(a[i * k + x], a_type)) * value(b[x * columns + j], b_type);
            if (clamps) sum = std::clamp<i64>(sum, INT32_MIN, INT32_MAX);
            d[i * columns + j] = static_cast<i32>(sum);
        }
}

// type: of A (u8 or s8); type2: of B; flags: .satfinite.
Flow execute_integer_mma(Warp& w, const Instruction& in, LaneMask lanes) {
    if (!converged(w, lanes)) return Flow::wait;
    const u32 k = in.count;
    u32 a[kRows * kMostK], b[kMostK * kColumns];
    i32 d[kRows * kColumns];
    load_fragments_a(w, in.operands[1].parts, 1, k, a);
    load_fragments_b(w, in.operands[2].parts, 1, b);
    const auto place = [](u32 q, u32 l) { return (l / 4 + 8 * (q / 2)) * kColumns + l % 4 * 2 + q % 2; };
    for (u32 q = 0; q < 4; ++q)
        for (u32 l = 0; l < kLanes; ++l) d[place(q, l)] = static_cast<i32>(w.reg32(in.operands[3].parts[q].slot)[l]);
    multiply_integers(a, b, d, kRows, kColumns, k, in.type, in.type2, in.flags);
    for (u32 q = 0; q < 4; ++q)
        for (u32 l = 0; l < kLanes; ++l) w.reg32(in.operands[0].parts[q].slot)[l] = static_cast<u32>(d[place(q, l)]);
    if (grid_of(w).counters.on)
        grid_of(w).counters.by_instruction[w.current->index].tensor_macs += kRows * kColumns * k;
    return Flow::next;
}

bool tensor_input_of(Type type, TensorInput& input) {
    switch (type) {
        case Type::bf16:
            input = TensorInput::bf16;
            return true;
        case Type::f16:
            input = TensorInput::fp16;
            return true;
        case Type::tf32:
            input = TensorInput::tf32;
            return true;
        case Type::e4m3:
            input = TensorInput::e4m3;
            return true;
        case Type::e5m2:
            input = TensorInput::e5m2;
            return true;
        default:
            return false;
    }
}

// ---- wgmma
// A descriptor of a matrix in shared memory (9.7.15.5.1.2.2 "Matrix Descriptor Format").
struct Descriptor {
    u32 start, leading, stride, swizzle;  // bytes; swizzle as in tensor_map.h
};
Descriptor decode_descriptor(Warp& w, u64 bits) {
    static constexpr u32 swizzles[4] = {0, 3, 2, 1};
    if (bits >> 49 & 7) fault(w, "a matrix descriptor with a base offset, which is not emulated");
    return {static_cast<u32>(bits & 0x3fff) << 4, static_cast<u32>(bits >> 16 & 0x3fff) << 4,
            static_cast<u32>(bits >> 32 & 0x3fff) << 4, swizzles[bits >> 62]};
}

constexpr u32 widths[4] = {16, 32, 64, 128};  // of a swizzle, in bytes; 16 is none

// Where the 16 bytes lie that hold element (mn, k) of a matrix and the following ones along its major dimension.
u32 chunk_address(const Descriptor& d, u32 mn, u32 k, u32 bytes, bool mn_major) {
    const u32 width = widths[d.swizzle];
    if (!mn_major) {
        const u32 along = k * bytes;
        if (d.swizzle == 0) return d.start + mn / 8 * d.stride + along / 16 * d.leading + mn % 8 * 16;
        return swizzled(d.start + mn / 8 * d.stride + mn % 8 * width + along, d.swizzle);
    }
    const u32 along = mn * bytes;
    if (d.swizzle == 0) return d.start + along / 16 * d.stride + k / 8 * d.leading + k % 8 * 16;
    return swizzled(d.start + along / width * d.leading + k / 8 * d.stride + k % 8 * width + along % width, d.swizzle);
}

// Reads an (mn, k) matrix; element (i, j) goes to out[i * mn_pitch + j * k_pitch], its sign flipped if `negate`.
void load_matrix(Warp& w, const Actor& agent, u64 descriptor, u32 mn, u32 k, u32 bytes, bool mn_major, bool negate,
                 u32* out, u32 mn_pitch, u32 k_pitch) {
    const Descriptor d = decode_descriptor(w, descriptor);
    Block& block = *w.block;
    const u32 per_chunk = 16 / bytes, sign = negate ? 1u << (8 * bytes - 1) : 0;
    for (u32 i = 0; i < mn; i += mn_major ? per_chunk : 1)
        for (u32 j = 0; j < k; j += mn_major ? 1 : per_chunk) {
            const u32 offset = chunk_address(d, i, j, bytes, mn_major);
            if (offset + 16 > block.shared.size()) fault(w, "wgmma reads outside of the block's shared memory");
            shared_read(w, agent, block, offset, 16);
            if (const u32 laid = block.cells[offset / 4].laid; laid && laid - 1 != d.swizzle && options().check_async)
                fault(w, "a descriptor with a swizzle of " + std::to_string(widths[d.swizzle]) +
                             " bytes for what a tensor copy laid down with one of " + std::to_string(widths[laid - 1]));
            for (u32 e = 0; e < per_chunk; ++e) {
                u32 x = 0;
                std::memcpy(&x, block.shared.data() + offset + e * bytes, bytes);
                out[mn_major ? (i + e) * mn_pitch + j * k_pitch : i * mn_pitch + (j + e) * k_pitch] = x ^ sign;
            }
        }
}

// Registers of A must not be in flight as accumulators, and no register may have been touched since the last
// wgmma.fence ("wgmma.fence").
void check_wgmma_registers(Warp& w, const Instruction& in, const Warpgroup& group) {
    const u32 q = w.index % 4;
    for (std::size_t k : {0, 1})
        for (const Operand& o : in.operands[k].parts) {
            if (k == 1 && !group.written_by[q].empty() && group.written_by[q][o.slot / 128] > group.waited[q])
                fault(w, "takes A from a register that a wgmma in flight writes, with no wgmma.wait_group between");
            if (w.fence_period <= (w.touched.empty() ? 1 : w.touched[o.slot / 128]))
                fault(w, "warp " + std::to_string(w.index) +
                             " has touched a register of this wgmma with no wgmma.fence between (in the PTX: the "
                             "compiler moves what no asm volatile pins)");
        }
}

constexpr u32 kNegateA = 1, kNegateB = 2, kTransposeA = 4, kTransposeB = 8, kRegistersA = 16, kClamps = 32;
constexpr u32 kScaleByPredicate = 2;

// D (64, n) = A (64, k) B (k, n) (+ D). variant: n; count: k; type: of D; type2: of A and B; flags as above; src[0],
// src[1]: the descriptors; src[2]: whether D is added: 0, 1, or kScaleByPredicate. The four warps meet here; the last
// to come computes for all. Results are in the registers at once, but count as in flight until they are waited for.
Flow execute_wgmma(Warp& w, const Instruction& in, LaneMask lanes) {
    if (lanes != kAllLanes) return Flow::wait;
    Block& block = *w.block;
    const u32 first = w.index / 4 * 4, me = 1u << (w.index % 4);
    Warpgroup& group = block.warpgroups[w.index / 4];
    if (group.done & me) {
        group.done &= ~me;
        return Flow::next;
    }
    if (first + 4 > block.warps.size()) fault(w, "wgmma by an incomplete warpgroup");
    if (!(group.arrived & me)) {
        if (group.arrived && group.at != &in && options().check_barriers)
            fault(w, "warps of the warpgroup are at different wgmma instructions, the others at " +
                         position(*grid_of(w).kernel, group.at->index));
        if (group.done) return Flow::wait;
        group.at = &in;
        group.arrived |= me;
        grid_of(w).effect();
    }
    if (group.arrived != 15) return Flow::wait;
    group.arrived = 0;
    group.done = 15 & ~me;

    const u32 n = in.variant, k = in.count;
    TensorInput input{};
    const bool integers = !tensor_input_of(in.type2, input);
    const u32 bytes = integers ? 1 : static_cast<u32>(bytes_of(input));
    Clock knows;
    for (u32 q = 0; q < 4; ++q) knows.join(block.warps[first + q].clock);
    const u32 agent = cluster_of(w).wgmma_agent(w), time = ++group.time;
    const Actor reader{agent, time, &knows, true, false};

    if (options().check_async)
        for (u32 q = 0; q < 4; ++q) check_wgmma_registers(block.warps[first + q], in, group);
    std::vector<u32> a(64 * k), b(k * n);
    const auto same_descriptor = [&](u32 slot, const char* which) {
        const u64 value = w.reg64(slot)[0];
        if (options().check_barriers)
            for (u32 q = 0; q < 4; ++q)
                for (u32 l = 0; l < kLanes; ++l)
                    if (block.warps[first + q].reg64(slot)[l] != value)
                        fault(w, std::string("lanes of the warpgroup hold different descriptors of ") + which);
        return value;
    };
    if (in.flags & kRegistersA) {
        for (u32 q = 0; q < 4; ++q)
            load_fragments_a(block.warps[first + q], in.operands[1].parts, bytes, k, &a[q * 16 * k]);
        if (in.flags & kNegateA)
            for (u32& x : a) x ^= 1u << (8 * bytes - 1);
    } else {
        load_matrix(w, reader, same_descriptor(in.src[0], "A"), 64, k, bytes, in.flags & kTransposeA,
                    in.flags & kNegateA, a.data(), k, 1);
    }
    load_matrix(w, reader, same_descriptor(in.src[1], "B"), n, k, bytes, in.flags & kTransposeB, in.flags & kNegateB,
                b.data(), 1, n);

    const std::vector<Operand>& d = in.operands[0].parts;
    std::vector<float> sum(integers ? 0 : 16 * n);
    std::vector<i32> total(integers ? 16 * n : 0);
    for (u32 q = 0; q < 4; ++q) {
        Warp& warp = block.warps[first + q];
        const bool adds =
            in.src[2] == kScaleByPredicate ? warp.predicate(in.predicate_src, in.predicate_src_negated) & 1 : in.src[2];
        const bool wide = in.type != Type::f16;
        // A register i of lane l: rows l / 4 and + 8, columns 8 j + 2 (l % 4) and the next one.
        const auto place = [&](u32 i, u32 l, u32 h) {
            const u32 row = l / 4 + 8 * (wide ? i / 2 % 2 : i % 2), j = wide ? i / 4 : i / 2;
            return row * n + 8 * j + l % 4 * 2 + (wide ? i % 2 : h);
        };
        if (integers) {
            for (u32 i = 0; i < d.size(); ++i)
                for (u32 l = 0; l < kLanes; ++l)
                    total[place(i, l, 0)] = adds ? static_cast<i32>(warp.reg32(d[i].slot)[l]) : 0;
            multiply_integers(&a[q * 16 * k], b.data(), total.data(), 16, n, k, in.type2, in.type2, in.flags & kClamps);
            for (u32 i = 0; i < d.size(); ++i)
                for (u32 l = 0; l < kLanes; ++l) warp.reg32(d[i].slot)[l] = static_cast<u32>(total[place(i, l, 0)]);
            continue;
        }
        for (u32 i = 0; i < d.size(); ++i) {
            const u32* x = warp.reg32(d[i].slot);
            for (u32 l = 0; l < kLanes; ++l)
                for (u32 h = 0; h < (wide ? 1u : 2u); ++h)
                    sum[place(i, l, h)] = !adds  ? 0.0f
                                          : wide ? std::bit_cast<float>(x[l])
                                                 : half_to_float(static_cast<u16>(x[l] >> (16 * h)));
        }
        if (options().fast_mma)
            fused_multiply_add(&a[q * 16 * k], b.data(), sum.data(), 16, static_cast<int>(n), static_cast<int>(k), n,
                               input);
        else
            tensor_core(&a[q * 16 * k], b.data(), sum.data(), 16, static_cast<int>(n), static_cast<int>(k), n, input,
                        wgmma_model(input));
        for (u32 i = 0; i < d.size(); ++i) {
            u32* x = warp.reg32(d[i].slot);
            for (u32 l = 0; l < kLanes; ++l)
                x[l] = wide ? std::bit_cast<u32>(sum[place(i, l, 0)])
                            : float_to_half(sum[place(i, l, 0)]) | static_cast<u32>(float_to_half(sum[place(i, l, 1)]))
                                                                       << 16;
        }
    }
    for (u32 q = 0; q < 4; ++q) {
        const std::size_t registers = grid_of(w).kernel->register_bytes / 128 + 1;
        group.written_by[q].resize(registers);
        group.read_by[q].resize(registers);
        for (const Operand& o : d) group.written_by[q][o.slot / 128] = time;
        for (const Operand& o : in.operands[1].parts) group.read_by[q][o.slot / 128] = time;
    }
    if (grid_of(w).counters.on) grid_of(w).counters.by_instruction[w.current->index].tensor_macs += 64ull * n * k;
    return Flow::next;
}

// wgmma.fence: what ordinary instructions did to registers before it is done before a wgmma after it.
Flow execute_wgmma_fence(Warp& w, const Instruction&, LaneMask) {
    ++w.fence_period;
    return Flow::next;
}

Flow execute_wgmma_commit(Warp& w, const Instruction&, LaneMask) {
    Warpgroup& group = w.block->warpgroups[w.index / 4];
    group.committed[w.index % 4].push_back(group.time);
    return Flow::next;
}

// count: groups that may be pending.
Flow execute_wgmma_wait(Warp& w, const Instruction& in, LaneMask) {
    Warpgroup& group = w.block->warpgroups[w.index / 4];
    const std::vector<u32>& committed = group.committed[w.index % 4];
    if (committed.size() <= in.count) return Flow::next;
    const u32 time = committed[committed.size() - 1 - in.count];
    group.waited[w.index % 4] = std::max(group.waited[w.index % 4], time);
    u32& known = w.clock.own[cluster_of(w).wgmma_agent(w)];
    known = std::max(known, time);
    return Flow::next;
}

void bind_matrix_move(Binder& b, bool stores) {
    b.ignore({"sync", "aligned", "m8n8", "b16", "shared", "shared::cta"});
    const std::string number = b.one_of({"x1", "x2", "x4"});
    b.in.flags = b.has("trans");
    b.in.variant = stores;
    b.address(stores ? 0 : 1, Space::shared);
    b.vector(stores ? 1 : 0, false);
    if (b.in.operands[stores ? 1 : 0].parts.size() != static_cast<std::size_t>(number.empty() ? 0 : number[1] - '0'))
        b.unsupported("this number of matrices");
    b.run(execute_matrix_move, Class::shared);
}

}  // namespace

void find_wgmma_registers(Kernel& kernel) {
    std::vector<bool> used(kernel.register_bytes / 128 + 1);
    const auto is_wgmma = [](const Instruction& in) { return in.execute == execute_wgmma; };
    for (const Instruction& in : kernel.code)
        if (is_wgmma(in))
            for (std::size_t k : {0, 1})
                for (const Operand& o : in.operands[k].parts) used[o.slot / 128] = true;
    for (Instruction& in : kernel.code) {
        if (is_wgmma(in)) continue;
        for (u32 slot : in.register_slots)
            if (used[slot / 128]) in.wgmma_touches.push_back(slot);
        if (in.wgmma_touches.empty() || in.operands.empty()) continue;
        const auto written = [&](const Operand& o) {
            if (o.kind == Operand::Kind::reg && used[o.slot / 128]) in.wgmma_writes.push_back(o.slot);
        };
        const Operand& first = in.operands[0];  // what an instruction writes stands first; an address there is read
        if (first.kind == Operand::Kind::vector)
            for (const Operand& o : first.parts) written(o);
        else
            written(first);
    }
}

void touch_wgmma_registers(Warp& w, const Instruction& in) {
    const u32 q = w.index % 4;
    const Warpgroup& group = w.block->warpgroups[w.index / 4];
    const u32 waited = group.waited[q];
    if (!group.written_by[q].empty()) {
        for (u32 slot : in.wgmma_touches)
            if (group.written_by[q][slot / 128] > waited)
                fault(w, "touches a register that a wgmma in flight writes, with no wgmma.wait_group between");
        for (u32 slot : in.wgmma_writes)
            if (group.read_by[q][slot / 128] > waited)
                fault(w, "writes a register that a wgmma in flight reads, with no wgmma.wait_group between");
    }
    w.touched.resize(grid_of(w).kernel->register_bytes / 128 + 1, 1);
    if (in.opcode == "mov") {
        // Compilers place copies anywhere, and drop them: a copy is as old as what it copies.
        u32 period = 1;
        for (std::size_t k = 1; k < in.operands.size(); ++k) {
            period =
                std::max(period, in.operands[k].kind == Operand::Kind::reg ? w.touched[in.operands[k].slot / 128] : 1);
            for (const Operand& o : in.operands[k].parts) period = std::max(period, w.touched[o.slot / 128]);
        }
        for (u32 slot : in.wgmma_writes) w.touched[slot / 128] = period;
    } else {
        for (u32 slot : in.wgmma_touches) w.touched[slot / 128] = w.fence_period;
    }
}

void bind_ldmatrix(Binder& b) {
    bind_matrix_move(b, false);
}
void bind_stmatrix(Binder& b) {
    bind_matrix_move(b, true);
}

void bind_movmatrix(Binder& b) {
    b.ignore({"sync", "aligned", "m8n8", "b16"});
    if (!b.has("trans")) b.unsupported("without .trans");
    b.in.dst = b.destination(0, false);
    b.in.src[0] = b.source(1, false);
    b.run(execute_matrix_transpose, Class::shared);
}

void bind_mma(Binder& b) {
    Instruction& in = b.in;
    b.ignore({"sync", "aligned", "row", "col"});
    const std::string shape = b.one_of({"m16n8k4", "m16n8k8", "m16n8k16", "m16n8k32"});
    if (shape.empty()) b.unsupported("this shape");
    in.count = static_cast<u32>(std::stoi(shape.substr(6)));
    const Type d = b.type(0), a = b.type(1), bt = b.type(2), c = b.type(3);
    for (std::size_t k = 0; k < 4; ++k) b.vector(k, false);
    const auto registers = [&](std::size_t k) { return in.operands[k].parts.size(); };
    if (a == Type::u8 || a == Type::s8) {
        in.flags = b.has("satfinite");
        in.type = a;
        in.type2 = bt;
        if ((in.count != 16 && in.count != 32) || d != Type::s32 || registers(1) != in.count / 8 ||
            registers(2) != in.count / 16)
            b.unsupported("this form");
        return b.run(execute_integer_mma, Class::tensor);
    }
    TensorInput input;
    if (!tensor_input_of(a, input) || (d != Type::f32 && d != Type::f16) || (c != Type::f32 && c != Type::f16))
        b.unsupported("these types");
    if (a != bt) b.unsupported("A and B of different types");
    const u32 k_bytes = in.count * static_cast<u32>(bytes_of(input));
    if (k_bytes < 16 || k_bytes > 32 || registers(1) != k_bytes / 8 || registers(2) != k_bytes / 16)
        b.unsupported("this shape for this type");
    in.variant = static_cast<u32>(input);
    in.type = d;
    in.type2 = c;
    b.run(execute_mma, Class::tensor);
}

void bind_wgmma(Binder& b) {
    Instruction& in = b.in;
    b.ignore({"sync", "aligned"});
    if (b.has("fence")) return b.run(execute_wgmma_fence, Class::barrier);
    if (b.has("commit_group")) return b.run(execute_wgmma_commit, Class::tensor);
    if (b.has("wait_group")) {
        in.count = static_cast<u32>(b.immediate(0));
        return b.run(execute_wgmma_wait, Class::barrier);
    }
    if (!b.has("mma_async")) b.unsupported("this form");
    if (b.has("sp")) b.unsupported("sparse operands");
    for (const std::string& m : in.modifiers)
        if (m.starts_with("m64n")) {
            in.variant = static_cast<u32>(std::stoi(m.substr(4)));
            in.count = static_cast<u32>(std::stoi(m.substr(m.find('k') + 1)));
        }
    b.has_prefix("m64n");
    in.type = b.type(0);
    in.type2 = b.type(1);
    TensorInput input;
    const bool integers = in.type2 == Type::s8 || in.type2 == Type::u8;
    if (in.variant == 0 || (!integers && !tensor_input_of(in.type2, input)) || b.type(2) != in.type2)
        b.unsupported("these types or this shape");
    const u32 bytes = integers ? 1 : static_cast<u32>(bytes_of(input));
    const bool fits = integers ? in.type == Type::s32 : in.type == Type::f32 || in.type == Type::f16;
    if (!fits || in.count * bytes != 32) b.unsupported("these types");
    b.vector(0, false);
    if (in.operands[0].parts.size() != in.variant / (in.type == Type::f16 ? 4 : 2))
        b.unsupported("this number of registers");
    const bool registers = b.operand(1).kind == Operand::Kind::vector;
    if (registers)
        b.vector(1, false);
    else
        in.src[0] = b.source(1, true);
    in.src[1] = b.source(2, true);
    if (b.operand(3).kind == Operand::Kind::predicate) {
        b.predicate_source(3);
        in.src[2] = kScaleByPredicate;
    } else {
        in.src[2] = b.immediate(3) != 0;
    }
    const auto immediate = [&](std::size_t k) { return b.operands() > k ? b.immediate(k) : 0; };
    in.flags = (registers ? kRegistersA : 0) | (b.has("satfinite") ? kClamps : 0) | (immediate(4) < 0 ? kNegateA : 0) |
               (immediate(5) < 0 ? kNegateB : 0);
    const bool last = immediate(6), after = immediate(7);
    if (registers)
        in.flags |= last ? kTransposeB : 0;
    else
        in.flags |= (last ? kTransposeA : 0) | (after ? kTransposeB : 0);
    if (bytes != 2 && (in.flags & (kTransposeA | kTransposeB))) b.unsupported("transposition of this type");
    b.run(execute_wgmma, Class::tensor);
}

}  // namespace emulator
