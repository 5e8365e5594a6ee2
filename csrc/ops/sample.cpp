#include "ops/sample.h"

#include <algorithm>
#include <cmath>

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"

namespace pygpt::sample {
namespace {

using cpu::Isa;

const Implementation<Forward> forward_table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::sample_forward},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::sample_forward<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::sample_forward<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::sample_forward<Isa::scalar>},
};
Op op("sample", forward_table);

void one_a_row(const check::Named& argument, DType dtype, const char* what, const TensorView& logits) {
    check::dtype_is(argument, dtype, what);
    check::shape_is(argument, {logits.shape[0]}, "one for each row of logits");
    check::on_device(argument, logits.device, "where logits are");
    check::contiguous(argument);
}

template <class Number>
std::int64_t first_nan(const Number* value, std::int64_t count) {
    return std::find_if(value, value + count, [](Number x) { return std::isnan(x); }) - value;
}

void all_drawn(const Forward& a) {
    const check::Values logprobs(a.logprobs);
    if (!logprobs.as<void>()) return;
    const std::int64_t row = a.logits.dtype == DType::float64 ? first_nan(logprobs.as<double>(), a.rows)
                                                              : first_nan(logprobs.as<float>(), a.rows);
    if (row == a.rows) return;
    throw ValueError(text("logits must hold no NaN, no +inf, and not -inf alone, but row ", row, " does"));
}

}  // namespace

void forward(Forward arguments) {
    Forward& a = arguments;
    check::dtype_in({"logits", a.logits}, {DType::float32, DType::float64});
    check::dimensions_are({"logits", a.logits}, 2, "(batch, vocabulary)");
    check::contiguous({"logits", a.logits});
    if (a.logits.shape[1] == 0) throw ValueError("logits must have a vocabulary of at least 1, but have 0");
    if (!(a.temperature >= 0 && std::isfinite(a.temperature))) {
        throw ValueError(text("temperature must be finite and at least 0, but is ", a.temperature));
    }
    if (a.top_k && *a.top_k < 1) throw ValueError(text("top_k must be at least 1, but is ", *a.top_k));
    if (a.top_p && !(*a.top_p > 0 && *a.top_p <= 1)) {
        throw ValueError(text("top_p must be above 0 and at most 1, but is ", *a.top_p));
    }
    if (a.min_p && !(*a.min_p >= 0 && *a.min_p <= 1)) {
        throw ValueError(text("min_p must be at least 0 and at most 1, but is ", *a.min_p));
    }
    one_a_row({"seeds", a.seeds}, DType::int64, "seeds", a.logits);
    one_a_row({"positions", a.positions}, DType::int64, "positions", a.logits);
    one_a_row({"tokens", a.tokens}, DType::int64, "token ids", a.logits);
    one_a_row({"logprobs", a.logprobs}, a.logits.dtype, "the dtype of logits", a.logits);
    a.rows = a.logits.shape[0];
    a.vocabulary = a.logits.shape[1];
    op.run(forward_table, {a.logits.dtype, a.logits.device}, a);
    all_drawn(a);
}

}  // namespace pygpt::sample
