// A decoding step, recorded as op calls and replayed in one.
//
// While a recording is open on a thread, each op that the bindings run there is also kept, with its arguments.
// Replayed, the ops run in that order on the same memory, checks included; what changes from step to step (tokens,
// places, lengths) they read from tensors. Who records keeps all of that memory alive.
#ifndef PYGPT_SESSION_RECORDING_H
#define PYGPT_SESSION_RECORDING_H

#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace pygpt::session {

class Recording : public std::enable_shared_from_this<Recording> {
  public:
    // Open on the calling thread until `close` there or the end of its life, on whatever thread; one at a time.
    void open();
    void close();
    // What is open on the calling thread, or null.
    static std::shared_ptr<Recording> current();

    Recording() = default;
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

    template <class Arguments>
    void add(void (*op)(Arguments), const Arguments& arguments) {
        calls_.push_back([=] { op(arguments); });
    }
    void replay() const {
        for (const auto& call : calls_) call();
    }

  private:
    std::vector<std::function<void()>> calls_;
};

}  // namespace pygpt::session

#endif
