// The key/value cache of a batch: where a step's tokens stand in it, and how their keys and values get there.
//
// A cache has `capacity` places for each row and one more, which no query sees: what belongs to no token goes there. A
// slot is a place in the whole cache: row · (capacity + 1) + place.
#ifndef PYGPT_SESSION_CACHE_H
#define PYGPT_SESSION_CACHE_H

#include <cstdint>

#include "core/tensor_view.h"

namespace pygpt::session {

// A step reads the last token of each row that is alive. All tensors contiguous, on one device, int64 but for alive.
struct Places {
    TensorView tokens;   // (R, L): each row's tokens, from its first
    TensorView lengths;  // (R,): how many there are, 1 to the smaller of L and the capacity
    TensorView alive;    // (R,), bool
    std::int64_t capacity;
    // The results. Of a row that is not alive: token 0, in the place that no query sees, and it sees no key.
    TensorView ids;          // (R, 1)
    TensorView positions;    // (R, 1)
    TensorView slots;        // (R,)
    TensorView query_start;  // (R,)
    TensorView key_lengths;  // (R,)
};

// Writes each row's next token behind its last; on the CPU, where a call costs more than its work. Contiguous, int64
// but for alive.
struct Append {
    TensorView tokens;   // (R, L)
    TensorView lengths;  // (R,), each at least 0 and less than L: becomes one more in rows that are alive
    TensorView alive;    // (R,), bool: becomes false where the token is one of `ends`
    TensorView chosen;   // (R,), passed over in rows that are not alive
    TensorView ends;     // (E,)
};

// Copies keys and values of new tokens to their slots; what the places hold that no query sees is anything. The last
// dimension of each but slots has stride 1.
struct Store {
    TensorView k, v;              // (B, T, G, D)
    TensorView slots;             // (B · T,) int64, contiguous
    TensorView k_cache, v_cache;  // (B, capacity + 1, G, D)
};

// Puts the elements of a tensor of any strides one after the other, between ops that take them so; on the CPU.
struct Copy {
    TensorView x;    // any shape
    TensorView out;  // like x; contiguous
};

void find_places(Places arguments);
void append(Append arguments);
void copy(Copy arguments);
void store(Store arguments);

}  // namespace pygpt::session

#endif
