#include "session/recording.h"

#include "core/error.h"

namespace pygpt::session {
namespace {

thread_local std::weak_ptr<Recording> open_recording;

}  // namespace

std::shared_ptr<Recording> Recording::current() {
    return open_recording.lock();
}

void Recording::open() {
    if (current()) throw ValueError("a step is being recorded on this thread already");
    open_recording = weak_from_this();
}

void Recording::close() {
    if (current().get() == this) open_recording.reset();
}

}  // namespace pygpt::session
