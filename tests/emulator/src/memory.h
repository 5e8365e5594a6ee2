// Device memory: which host memory kernels may touch, and how an address of a lane becomes a pointer.
#pragma once
#include <cstddef>
#include <optional>
#include <string>

#include "program.h"
#include "state.h"

namespace emulator {

// Device memory is host memory. Kernels may touch what was allocated here or registered, and nothing else.
void* device_allocate(std::size_t bytes);  // filled with 0xff: NaN in every float format
void device_free(void* p);
void device_register(const void* p, std::size_t bytes, bool writable);  // ranges may overlap
void device_unregister(const void* p);

bool is_read_only(u64 address);  // registered so, and kept so by check_readonly: nothing there can race

// A pointer to `bytes` of global memory at `address`, after the checks of bounds and permission.
u8* global_pointer(Warp& w, u64 address, u32 bytes, bool write);
// Of shared memory at a shared or generic address; `block` and `offset` say whose and where.
u8* shared_pointer(Warp& w, u64 address, u32 bytes, Block*& block, u32& offset);
u8* local_pointer(Warp& w, int lane, u64 address, u32 bytes);
const u8* param_pointer(Warp& w, u64 address, u32 bytes);
// The space that a generic address lies in.
Space space_of(u64 generic_address);
void check_aligned(Warp& w, u64 address, u32 to, const char* what);

struct LaneAccess {
    u8* pointer;
    Space space;
    Block* block;  // shared
    u32 offset;    // shared
};
// Resolves and checks one lane's access to `space`, and tells the race check of it.
LaneAccess access(Warp& w, int lane, u64 address, Space space, u32 bytes, bool write, bool strong, bool sums = false);

// What atom, red and the reductions of bulk copies do to a number of the type; `flushes`: f32 sums lose subnormals, as
// they do in global memory.
enum class Atomic : u32 { add, min, max, inc, dec, and_, or_, xor_, exch, cas };
u64 atomic_result(Atomic operation, Type type, u64 old, u64 x, bool flushes);
std::optional<Atomic> atomic_named(const std::string& name);
bool is_order_sensitive(Atomic operation, Type type);  // sums of floating-point numbers
// What the mutation tool makes of an acquire or a release: the access alone, which orders nothing.
void make_relaxed(Instruction& in);
bool orders(const Instruction& in);  // ld, st, atom, red: acquires or releases

}  // namespace emulator
