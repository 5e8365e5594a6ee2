// The checks that ops share. Each names the op's argument, what was expected and what came.
#ifndef PYGPT_OPS_CHECK_H
#define PYGPT_OPS_CHECK_H

#include <initializer_list>
#include <optional>
#include <vector>

#include "core/error.h"
#include "core/tensor_view.h"

namespace pygpt::check {

struct Named {
    const char* name;
    const TensorView& tensor;
};

void dtype_in(const Named& argument, std::initializer_list<DType> allowed);
void dtype_is(const Named& argument, DType dtype, const char* because);
void on_device(const Named& argument, const Device& device, const char* because);
void same_dtype(const Named& argument, const Named& model);
void same_device(const Named& argument, const Named& model);
void shape_is(const Named& argument, std::initializer_list<std::int64_t> shape, const char* because);
void dimensions_are(const Named& argument, int dimensions, const char* form);
void contiguous(const Named& argument);
void like(const Named& argument, const Named& model);  // dtype, shape and device of the model; contiguous
void like_but_for_dtype(const Named& argument, const Named& model);

// The dtype by which an implementation is chosen for tensors of several dtypes, given that of those before this one
// (float32 before the first): float32 stands for bfloat16 too. float16 and float64 cannot meet, as no implementation
// computes both.
DType joint_dtype(DType before, const Named& argument);

// What a contiguous tensor holds, where checks may look at it: on the CPU always; on a CUDA device, where that waits
// for the device, only with PYGPT_CHECK=1 in the environment. Without it kernels stay in bounds, whatever the values.
class Values {
  public:
    explicit Values(const TensorView& tensor);
    Values(const Values&) = delete;
    Values& operator=(const Values&) = delete;

    // Null where they may not be looked at.
    template <class T>
    const T* as() const {
        return static_cast<const T*>(data_);
    }

  private:
    const void* data_ = nullptr;
    std::vector<std::int64_t> copy_;  // of device memory
};

// That every value of a contiguous int64 tensor is in 0..limit-1 or equals `except`, where values may be looked at; the
// first that is not is named with its place. `limit_is` says what the limit is.
void indices_in(const Named& argument, std::int64_t limit, std::optional<std::int64_t> except, const char* limit_is);

}  // namespace pygpt::check

#endif
