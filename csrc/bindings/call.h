// One call of an op from Python: its tensors, read one by one, and then the op, run where they lie.
//
//     Call call;
//     const add::Forward arguments{.x = call.input(x, "x"), .y = call.input(y, "y"), .out = call.output(out, "out")};
//     call.run(add::forward, arguments);
#ifndef PYGPT_BINDINGS_CALL_H
#define PYGPT_BINDINGS_CALL_H

#include <exception>
#include <optional>
#include <vector>

#include "bindings/tensors.h"
#include "core/error.h"
#include "core/tensor_view.h"
#include "core/trace.h"
#include "session/recording.h"

namespace pygpt::bindings {

class Call {
  public:
    Call() {
        if (trace::on()) trace::begin();
    }

    // What the op reads, and what it may write: on the emulated device nothing else can be touched. Raise as view()
    // does.
    TensorView input(py::handle tensor, const char* argument) { return add(view(tensor, argument), argument, false); }
    TensorView output(py::handle tensor, const char* argument) { return add(view(tensor, argument), argument, true); }

    // The same, where None may stand.
    std::optional<TensorView> optional_input(py::handle tensor, const char* argument) {
        if (tensor.is_none()) return std::nullopt;
        return input(tensor, argument);
    }
    std::optional<TensorView> optional_output(py::handle tensor, const char* argument) {
        if (tensor.is_none()) return std::nullopt;
        return output(tensor, argument);
    }

    // Runs the op without the GIL: on as many threads as torch uses, in the kernels' floating-point mode, or on the
    // current stream of the device that the tensors are on. Where the thread records a decoding step, it is kept there.
    template <class Arguments>
    void run(void (*op)(Arguments), const Arguments& arguments) {
        run_now([&] { op(arguments); });
        if (const auto recording = session::Recording::current()) recording->add(op, arguments);
    }

    // The same for what no decoding step has.
    template <class F>
    void run(const F& op) {
        if (session::Recording::current()) throw ValueError("a decoding step that is recorded has no such op");
        run_now(op);
    }

  private:
    TensorView add(const TensorView& tensor, const char* argument, bool written);
    template <class F>
    void run_now(const F& op) {
        run_now([](const void* f) { (*static_cast<const F*>(f))(); }, &op);
    }
    void run_now(void (*op)(const void*), const void* f);

    // A tensor's memory, from its first element to its last.
    struct Extent {
        const void* data;
        std::size_t bytes;
        bool written;
    };

    std::optional<int> cuda_device_;
    std::vector<Extent> extents_;  // on the emulated device
};

}  // namespace pygpt::bindings

#endif
