// The checks that ops share. Each names the op's argument, what was expected and what came.
#ifndef PYGPT_OPS_CHECK_H
#define PYGPT_OPS_CHECK_H

#include <initializer_list>

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
void shape_is(const Named& argument, std::initializer_list<std::int64_t> shape, const char* because);
void dimensions_are(const Named& argument, int dimensions, const char* form);
void contiguous(const Named& argument);

}  // namespace pygpt::check

#endif
