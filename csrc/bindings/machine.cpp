// What was built, what this machine has, and how fast it is: for pygpt.info(), pygpt doctor and the benchmarks.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/build_facts.h"
#include "bindings/call.h"
#include "core/error.h"
#include "cpu/measure.h"
#include "cpu/thread_pool.h"
#if defined(PYGPT_CUDA)
#include "cuda/devices.h"
#endif

namespace pygpt::bindings {
namespace {

// {"compiler", "cuda_compiler", "cuda_code": "sm_80;compute_80", "cuda_absent": why there is no CUDA part, or ""}
py::dict build() {
    using namespace py::literals;
    return py::dict("compiler"_a = build_facts::compiler, "cuda_compiler"_a = build_facts::cuda_compiler,
                    "cuda_code"_a = build_facts::cuda_code, "cuda_absent"_a = build_facts::cuda_absent);
}

// [(instruction set, why it does not run here, or "")]
py::list instruction_sets() {
    py::list out;
    for (const cpu::InstructionSet& set : cpu::instruction_sets()) out.append(py::make_tuple(set.name, set.why_not));
    return out;
}

// ([a dict for each device], why there is none, or "")
py::tuple cuda_devices() {
    py::list out;
#if defined(PYGPT_CUDA)
    using namespace py::literals;
    const cuda::Devices devices = cuda::devices();
    for (const cuda::DeviceProperties& device : devices.found) {
        out.append(py::dict("name"_a = device.name, "compute_capability"_a = py::make_tuple(device.major, device.minor),
                            "multiprocessors"_a = device.multiprocessors, "memory_bytes"_a = device.memory_bytes,
                            "shared_memory_bytes"_a = device.shared_memory_bytes));
    }
    return py::make_tuple(out, devices.why_none);
#else
    return py::make_tuple(out, build_facts::cuda_absent);
#endif
}

DType dtype_of(const std::string& dtype) {
    for (DType each : {DType::float32, DType::bfloat16, DType::float64}) {
        if (dtype == name(each)) return each;
    }
    throw ValueError(text("dtype must be float32, bfloat16 or float64, but is \"", dtype, "\""));
}

double measure_arithmetic(const std::string& isa, const std::string& dtype, double seconds) {
    double out = 0;
    Call().run([&] { out = cpu::measure_arithmetic(isa, dtype_of(dtype), seconds); });
    return out;
}

double measure_bandwidth(std::int64_t bytes, double seconds) {
    double out = 0;
    Call().run([&] { out = cpu::measure_bandwidth(bytes, seconds); });
    return out;
}

// For memory that is about to be written for the first time.
void use_huge_pages(py::handle tensor) {
    Call call;
    const TensorView memory = call.output(tensor, "tensor");
    cpu::use_huge_pages(memory.data, static_cast<std::size_t>(elements(memory) * bytes_of(memory.dtype)));
}

}  // namespace

void add_machine(py::module_& module) {
    module.def("build", &build);
    module.def("instruction_sets", &instruction_sets);
    module.def("cuda_devices", &cuda_devices);
    module.def("measure_arithmetic", &measure_arithmetic, py::arg("isa"), py::arg("dtype"), py::arg("seconds"));
    module.def("measure_bandwidth", &measure_bandwidth, py::arg("bytes"), py::arg("seconds"));
    module.def("use_huge_pages", &use_huge_pages, py::arg("tensor"));
}

}  // namespace pygpt::bindings
