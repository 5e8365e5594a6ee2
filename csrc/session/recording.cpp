#include "session/recording.h"

#include "core/error.h"

namespace pygpt::session {
namespace {

thread_local Recording* open_recording = nullptr;

}  // namespace

Recording* Recording::current() {
    return open_recording;
}

void Recording::open() {
    if (open_recording) throw ValueError("a step is being recorded on this thread already");
    open_recording = this;
}

void Recording::close() {
    if (open_recording == this) open_recording = nullptr;
}

}  // namespace pygpt::session
