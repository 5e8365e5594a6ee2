// Many tensors in one launch: each is cut into runs of `elements_per_run`, a block takes a run, and finds whose it is
// in a list that is passed by value.
#ifndef PYGPT_CUDA_TILES_RUNS_CUH
#define PYGPT_CUDA_TILES_RUNS_CUH

#include <cstdint>

#include "cuda/launch.h"

namespace pygpt::cuda {

constexpr std::int64_t elements_per_run = 4096;
constexpr int launch_parameter_bytes = 4096;  // of a kernel

// What is known of `count` tensors, each an Item with the members `elements` and `first_run` (in this launch).
template <class Item>
struct Runs {
    // Room is left for what else a kernel takes.
    static constexpr int capacity = (launch_parameter_bytes - 256) / static_cast<int>(sizeof(Item));
    Item item[capacity];
    int count = 0;
    std::int64_t runs = 0;

    bool full() const { return count == capacity; }
    // Tensors without elements have no run.
    void add(Item next) {
        if (next.elements == 0) return;
        next.first_run = runs;
        runs += divide_up(next.elements, elements_per_run);
        item[count++] = next;
    }
    void clear() { *this = {}; }

    // The item of a run: the last one that begins at or before it.
    __device__ const Item& of(std::int64_t run) const {
        int first = 0, end = count;
        while (end - first > 1) {
            const int middle = (first + end) / 2;
            (item[middle].first_run <= run ? first : end) = middle;
        }
        return item[first];
    }
};

}  // namespace pygpt::cuda

#endif
