#include "ops/adamw.h"

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/check.h"
#include "ops/implementation.h"

namespace pygpt::adamw {
namespace {

using cpu::Isa;

const Implementation<Step> table[] = {
    {"cuda_sm80", cuda::refuses<80>, cuda::adamw_step},
    {"cpu_avx512", cpu::refuses<Isa::avx512>, cpu::adamw_step<Isa::avx512>},
    {"cpu_avx2", cpu::refuses<Isa::avx2>, cpu::adamw_step<Isa::avx2>},
    {"cpu_scalar", cpu::refuses<Isa::scalar>, cpu::adamw_step<Isa::scalar>},
};
Op op("adamw", table);

void scalar(const check::Named& argument, const char* what, const Device& device) {
    check::dtype_is(argument, DType::float32, what);
    check::shape_is(argument, {}, "one number");
    check::on_device(argument, device, "where the params are");
}

void beside_param(const check::Named& argument, const TensorView& param, DType dtype, const char* because) {
    if (!same_shape(argument.tensor, param)) {
        throw ValueError(text(argument.name, " must have the shape of its param, ", shape_text(param), ", but has ",
                              shape_text(argument.tensor)));
    }
    check::dtype_is(argument, dtype, because);
    check::on_device(argument, param.device, "where its param is");
    check::contiguous(argument);
}

void check_parameter(const Parameter& p, const Device& device) {
    check::dtype_in({"param", p.param}, {DType::float32, DType::bfloat16, DType::float16, DType::float64});
    check::on_device({"param", p.param}, device, "where the first param is");
    check::contiguous({"param", p.param});
    const DType state = p.param.dtype == DType::float64 ? DType::float64 : DType::float32;
    beside_param({"grad", p.grad}, p.param, p.param.dtype, "the dtype of its param");
    beside_param({"exp_avg", p.exp_avg}, p.param, state, "what moments are kept in");
    beside_param({"exp_avg_sq", p.exp_avg_sq}, p.param, state, "what moments are kept in");
    if (p.master) {
        check::dtype_in({"param with a master", p.param}, {DType::bfloat16, DType::float16});
        beside_param({"master", *p.master}, p.param, DType::float32, "a master copy");
    }
    if (p.counted) {
        scalar({"step", *p.counted}, "a number of steps", device);
    } else if (!(p.step >= 1)) {
        throw ValueError(text("step must be at least 1, but is ", p.step));
    }
}

// On the CPU what is counted is known.
Step with_known_numbers(Step a) {
    const auto known = [](const TensorView& tensor) { return double{*static_cast<const float*>(tensor.data)}; };
    a.lr = known(*a.rate);
    a.rate.reset();
    for (Parameter& p : a.parameters) {
        p.step = known(*p.counted);
        p.counted.reset();
    }
    return a;
}

}  // namespace

void step(const Step& a) {
    if (!(a.beta1 >= 0 && a.beta1 < 1)) throw ValueError(text("beta1 must be in [0, 1), but is ", a.beta1));
    if (!(a.beta2 >= 0 && a.beta2 < 1)) throw ValueError(text("beta2 must be in [0, 1), but is ", a.beta2));
    if (!(a.eps >= 0)) throw ValueError(text("eps must be at least 0, but is ", a.eps));
    if (a.parameters.empty()) return;
    Operands operands{DType::float32, a.parameters.front().param.device};
    for (const Parameter& parameter : a.parameters) {
        check_parameter(parameter, operands.device);
        operands.dtype = check::joint_dtype(operands.dtype, {"param", parameter.param});
    }
    if (a.grad_scale) scalar({"grad_scale", *a.grad_scale}, "a factor", operands.device);
    if (a.rate) scalar({"lr", *a.rate}, "a learning rate", operands.device);
    for (const Parameter& parameter : a.parameters) {
        if (parameter.counted.has_value() == a.rate.has_value()) continue;
        throw ValueError("steps and lr must all be tensors, or all numbers");
    }
    if (a.rate && operands.device.type == DeviceType::cpu) {
        step(with_known_numbers(a));
        return;
    }
    op.run(table, operands, a);
}

}  // namespace pygpt::adamw
