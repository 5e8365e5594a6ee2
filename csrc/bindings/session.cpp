#include "bindings/bindings.h"
#include "bindings/call.h"
#include "session/cache.h"
#include "session/recording.h"

namespace pygpt::bindings {
namespace {

using session::Recording;

constexpr const char* recording_type = "pygpt.Recording";

using Owner = std::shared_ptr<Recording>;  // what a capsule points to

Recording& recording_of(const py::capsule& capsule) {
    if (!PyCapsule_IsValid(capsule.ptr(), recording_type))
        throw TypeError("recording must be what session_begin() gave");
    return **capsule.get_pointer<Owner>();
}

py::capsule begin() {
    auto* const owner = new Owner(std::make_shared<Recording>());
    py::capsule capsule(owner, recording_type, [](PyObject* object) {
        delete static_cast<Owner*>(PyCapsule_GetPointer(object, recording_type));
    });
    (*owner)->open();
    return capsule;
}

void run(const py::capsule& capsule) {
    const Recording& recording = recording_of(capsule);
    Call call;
    call.run([&] { recording.replay(); });
}

void places(py::handle tokens, py::handle lengths, py::handle alive, py::handle capacity, py::handle ids,
            py::handle positions, py::handle slots, py::handle query_start, py::handle key_lengths) {
    Call call;
    const session::Places arguments{
        .tokens = call.input(tokens, "tokens"),
        .lengths = call.input(lengths, "lengths"),
        .alive = call.input(alive, "alive"),
        .capacity = integer(capacity, "capacity"),
        .ids = call.output(ids, "ids"),
        .positions = call.output(positions, "positions"),
        .slots = call.output(slots, "slots"),
        .query_start = call.output(query_start, "query_start"),
        .key_lengths = call.output(key_lengths, "key_lengths"),
    };
    call.run(session::find_places, arguments);
}

void append(py::handle tokens, py::handle lengths, py::handle alive, py::handle chosen, py::handle ends) {
    Call call;
    const session::Append arguments{
        .tokens = call.output(tokens, "tokens"),
        .lengths = call.output(lengths, "lengths"),
        .alive = call.output(alive, "alive"),
        .chosen = call.input(chosen, "chosen"),
        .ends = call.input(ends, "ends"),
    };
    call.run(session::append, arguments);
}

void copy(py::handle x, py::handle out) {
    Call call;
    const session::Copy arguments{.x = call.input(x, "x"), .out = call.output(out, "out")};
    call.run(session::copy, arguments);
}

void store(py::handle k, py::handle v, py::handle slots, py::handle k_cache, py::handle v_cache) {
    Call call;
    const session::Store arguments{
        .k = call.input(k, "k"),
        .v = call.input(v, "v"),
        .slots = call.input(slots, "slots"),
        .k_cache = call.output(k_cache, "k_cache"),
        .v_cache = call.output(v_cache, "v_cache"),
    };
    call.run(session::store, arguments);
}

}  // namespace

void add_session(py::module_& module) {
    module.def("session_begin", &begin);
    module.def(
        "session_end", [](const py::capsule& recording) { recording_of(recording).close(); }, py::arg("recording"));
    module.def("session_run", &run, py::arg("recording"));
    module.def("session_places", &places, py::arg("tokens"), py::arg("lengths"), py::arg("alive"), py::arg("capacity"),
               py::arg("ids"), py::arg("positions"), py::arg("slots"), py::arg("query_start"), py::arg("key_lengths"));
    module.def("session_append", &append, py::arg("tokens"), py::arg("lengths"), py::arg("alive"), py::arg("chosen"),
               py::arg("ends"));
    module.def("session_copy", &copy, py::arg("x"), py::arg("out"));
    module.def("session_store", &store, py::arg("k"), py::arg("v"), py::arg("slots"), py::arg("k_cache"),
               py::arg("v_cache"));
}

}  // namespace pygpt::bindings
