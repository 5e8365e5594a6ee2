// The extension module pygpt._C: every op's functions, the table of implementations, and what this build holds.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <string_view>

#include "bindings/bindings.h"
#include "bindings/build_facts.h"
#include "bindings/call.h"
#include "core/error.h"
#include "ops/implementation.h"
#if defined(PYGPT_EMULATED)
#include "launch.h"  // of the emulator
#include "options.h"
#include "touch.h"
#endif

namespace pygpt::bindings {
namespace {

// {implementation: the options that it leaves to later ones}
py::dict options_left(const std::string& op) {
    py::dict out;
    for (const Op::Entry& entry : Op::find(op).entries()) {
        if (*entry.leaves) out[entry.name] = entry.leaves;
    }
    return out;
}

// [(op, [(implementation, why it does not run here, or "")])]
py::list implementations() {
    py::list out;
    for (const Op* op : Op::all()) {
        py::list entries;
        for (const Op::Entry& entry : op->entries()) {
            const bool cuda = build_facts::emulated || std::string_view(entry.name).starts_with("cuda");
            Reason reason;
            for (DType dtype : {DType::float32, DType::bfloat16}) {  // some entries are for one of them alone
                reason = entry.refuses({dtype, {cuda ? DeviceType::cuda : DeviceType::cpu, 0}, true});
                if (reason.empty()) break;
            }
            entries.append(py::make_tuple(entry.name, reason));
        }
        out.append(py::make_tuple(op->name(), entries));
    }
    return out;
}

py::object name_or_none(const char* name) {
    return name ? py::object(py::str(name)) : py::object(py::none());
}

}  // namespace

PYBIND11_MODULE(PYGPT_MODULE, module) {
#if defined(PYGPT_EMULATED)
    if (const char* device = std::getenv("PYGPT_EMULATE")) emulator::set_option("arch", device);
    py::module_ emulated = module.def_submodule("emulator");
    emulated.def("set_option", [](const std::string& name, const std::string& value) {
        if (!emulator::set_option(name, value)) throw ValueError(text("the emulator has no option ", name));
    });
    emulated.def("take_counts", &emulator::take_counts);
    // As an op that only reads the tensor.
    emulated.def("touch", [](py::handle tensor, std::int64_t element, bool write) {
        Call call;
        const TensorView view = call.input(tensor, "tensor");
        call.run([&] { cuda::touch(view, element, write); });
    });
#endif
    py::register_local_exception_translator([](std::exception_ptr error) {
        try {
            if (error) std::rethrow_exception(error);
        } catch (const ValueError& e) {
            PyErr_SetString(PyExc_ValueError, e.what());
        } catch (const TypeError& e) {
            PyErr_SetString(PyExc_TypeError, e.what());
        }
    });
    module.attr("__version__") = build_facts::version;
    module.def("implementations", &implementations);
    module.def("options_left", &options_left, py::arg("op"));
    module.def(
        "force", [](const std::string& op, const std::optional<std::string>& name) { Op::find(op).force(name); },
        py::arg("op"), py::arg("name"));
    module.def("forced", [](const std::string& op) { return name_or_none(Op::find(op).forced()); }, py::arg("op"));
    module.def(
        "last_used", [](const std::string& op) { return name_or_none(Op::find(op).last_used()); }, py::arg("op"));
    add_machine(module);
    add_adamw(module);
    add_add(module);
    add_attention(module);
    add_cross_entropy(module);
    add_dropout(module);
    add_embedding(module);
    add_feed_forward(module);
    add_gated_product(module);
    add_grad_norm(module);
    add_layer_norm(module);
    add_linear(module);
    add_linear_cross_entropy(module);
    add_quantized_linear(module);
    add_rms_norm(module);
    add_rotary(module);
    add_sample(module);
    add_session(module);
}

}  // namespace pygpt::bindings
