#include "bindings/call.h"

#include <unistd.h>

#include <mutex>

#include "bindings/build_facts.h"
#include "cpu/thread_pool.h"
#if defined(PYGPT_CUDA)
#include "cuda/execution.h"
#endif
#if defined(PYGPT_EMULATED)
#include "memory.h"  // of the emulator
#endif

namespace pygpt::bindings {
namespace {

// A function of torch, looked up once, for a static that begins as null (as in tensors.cpp, guarded by the GIL), and
// never freed: the interpreter may be gone when the library is unloaded.
py::handle torch_function(PyObject*& known, const char* module, const char* name) {
    if (!known) known = py::object(py::module_::import(module).attr(name)).release().ptr();
    return known;
}

// What torch.get_num_threads() says now.
int torch_threads() {
    static PyObject* known = nullptr;
    PyObject* threads = PyObject_CallNoArgs(torch_function(known, "torch", "get_num_threads").ptr());
    if (!threads) throw py::error_already_set();
    return static_cast<int>(PyLong_AsLong(py::reinterpret_steal<py::object>(threads).ptr()));
}

// Takes the GIL back after PyEval_SaveThread. Not a destructor: in an interpreter that is ending, a daemon thread does
// not come back from here, and ends without unwinding.
void take_gil(PyThreadState* state) {
#if PY_VERSION_HEX >= 0x030D0000
    const bool ending = Py_IsFinalizing();
#else
    const bool ending = _Py_IsFinalizing();
#endif
    // PyEval_RestoreThread would end this thread by unwinding it through C++ frames; Python 3.14 lets it hang instead.
    while (ending) pause();
    PyEval_RestoreThread(state);
}

// Runs f() without the GIL.
template <class F>
void without_gil(const F& f) {
    PyThreadState* const state = PyEval_SaveThread();
    std::exception_ptr error;
    try {
        f();
    } catch (...) {
        error = std::current_exception();
    }
    take_gil(state);
    if (error) std::rethrow_exception(error);
}

#if defined(PYGPT_CUDA)

// Scratch memory of one call, as torch tensors: torch's allocator keeps to the stream and to a graph that is captured.
class TorchScratch {
  public:
    explicit TorchScratch(int device) : device_(device) {}
    ~TorchScratch() {
        for (const void* data : data_) forget(data);
    }
    TorchScratch(const TorchScratch&) = delete;
    TorchScratch& operator=(const TorchScratch&) = delete;

    void* allocate(std::size_t bytes) {
        const py::gil_scoped_acquire gil;
        static PyObject* known_empty = nullptr;
        static PyObject* known_uint8 = nullptr;
        const py::handle empty = torch_function(known_empty, "torch", "empty");
        const py::handle uint8 = torch_function(known_uint8, "torch", "uint8");
        using namespace py::literals;
        const py::object device = build_facts::emulated ? py::object(py::str("cpu")) : py::object(py::int_(device_));
        tensors_.push_back(empty(bytes, "dtype"_a = uint8, "device"_a = device));
        void* const data = view(tensors_.back(), "scratch").data;
        data_.push_back(data);
        permit(data, bytes, true);
        return data;
    }

    // On the emulated device: kernels may touch that memory, and no longer may.
    static void permit([[maybe_unused]] const void* data, [[maybe_unused]] std::size_t bytes,
                       [[maybe_unused]] bool written) {
#if defined(PYGPT_EMULATED)
        emulator::device_register(data, bytes, written);
#endif
    }
    static void forget([[maybe_unused]] const void* data) {
#if defined(PYGPT_EMULATED)
        emulator::device_unregister(data);
#endif
    }

  private:
    int device_;
    std::vector<py::object> tensors_;
    std::vector<const void*> data_;
};

void* current_stream(int device) {
    if (build_facts::emulated) return nullptr;
    static PyObject* known = nullptr;
    return PyLong_AsVoidPtr(torch_function(known, "torch._C", "_cuda_getCurrentRawStream")(device).ptr());
}

#endif

}  // namespace

TensorView Call::add(const TensorView& tensor, const char* argument, bool written) {
    if (trace::on()) trace::argument(argument, tensor);
    if (tensor.device.type == DeviceType::cuda) cuda_device_ = tensor.device.index;
    if (build_facts::emulated && elements(tensor) > 0) {
        std::int64_t last = 0;  // element
        for (int i = 0; i < tensor.dimensions; ++i) last += (tensor.shape[i] - 1) * tensor.strides[i];
        extents_.push_back({tensor.data, static_cast<std::size_t>((last + 1) * bytes_of(tensor.dtype)), written});
    }
    return tensor;
}

void Call::run_now(void (*op)(const void*), const void* f) {
#if defined(PYGPT_CUDA)
    if (cuda_device_) {
        // The emulated device knows what the kernels of one call may touch: calls of several threads take turns.
        static std::recursive_mutex emulated_device;
        std::unique_lock turn(emulated_device, std::defer_lock);
        if (build_facts::emulated) without_gil([&] { turn.lock(); });
        TorchScratch scratch(*cuda_device_);
        const cuda::Execution execution{
            .device = *cuda_device_,
            .stream = current_stream(*cuda_device_),
            .allocate = [](void* s, std::size_t bytes) { return static_cast<TorchScratch*>(s)->allocate(bytes); },
            .allocator = &scratch,
        };
        for (const Extent& extent : extents_) TorchScratch::permit(extent.data, extent.bytes, extent.written);
        const auto end = [&] {
            for (const Extent& extent : extents_) TorchScratch::forget(extent.data);
        };
        try {
            without_gil([&] {
                const cuda::ExecutionScope scope(execution);
                op(f);
            });
        } catch (...) {
            end();
            throw;
        }
        end();
        return;
    }
#endif
    const int threads = torch_threads();
    without_gil([&] {
        cpu::set_threads(threads);
        const cpu::FloatingPointMode mode;
        op(f);
    });
}

}  // namespace pygpt::bindings
