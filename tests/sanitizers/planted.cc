// Mistakes planted on purpose, of the shapes that the full runs under sanitizers are there to find: a run
// that misses one of them has shown nothing. planted_test.py runs each twice, as it is and mended.
//
//   nibble-planted MISTAKE [--mended]
//
// Races are made certain, not likely: both sides meet first, by relaxed atomics, which order nothing. Those
// of calls stand where cmake/tsan_grpc.cc tells the sanitizer what gRPC orders: too much told there would
// hide them.
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <climits>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "nibble/v1/fleet.grpc.pb.h"

namespace nibble {
namespace {

bool mended = false;

// --- Races. ---

// Two threads leave it together; nothing that one did before is ordered with what the other does after.
class Meeting {
 public:
  void Arrive() {
    arrived_.fetch_add(1, std::memory_order_relaxed);
    while (arrived_.load(std::memory_order_relaxed) < 2) std::this_thread::yield();
  }

 private:
  std::atomic<int> arrived_{0};
};

// A number of two threads, whose lock only the mended program takes.
class Shared {
 public:
  void AddPlanted() {
    meeting_.Arrive();
    std::unique_lock lock(mutex_, std::defer_lock);
    if (mended) lock.lock();
    ++value_;
  }

 private:
  Meeting meeting_;
  std::mutex mutex_;
  int value_ = 0;
};

void RunCounter() {
  Shared shared;
  std::thread other([&] { shared.AddPlanted(); });
  shared.AddPlanted();
  other.join();
}

// A call whose handler and reactor do what a mistake wants.
class Reactor final : public grpc::ServerUnaryReactor {
 public:
  explicit Reactor(std::function<void()> on_done) : on_done_(std::move(on_done)) {}
  void OnDone() override {
    if (on_done_) on_done_();
    delete this;
  }

 private:
  std::function<void()> on_done_;
};

using Handler = std::function<Reactor*(v1::Worker*)>;

class Service final : public v1::FleetService::CallbackService {
 public:
  explicit Service(Handler handler) : handler_(std::move(handler)) {}
  grpc::ServerUnaryReactor* GetWorker(grpc::CallbackServerContext*, const v1::GetWorkerRequest*,
                                      v1::Worker* response) override {
    return handler_(response);
  }

 private:
  Handler handler_;
};

// Serves, calls once from a thread of its own, does `meanwhile` on this one.
void Call(Handler handler, const std::function<void()>& meanwhile) {
  Service service(std::move(handler));
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  std::thread caller([port] {
    const auto stub = v1::FleetService::NewStub(
        grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    v1::Worker response;
    const grpc::Status status = stub->GetWorker(&context, v1::GetWorkerRequest(), &response);
    if (!status.ok()) std::fprintf(stderr, "the call failed: %s\n", status.error_message().c_str());
  });
  meanwhile();
  caller.join();
  server->Shutdown();
}

Reactor* Finished(std::function<void()> on_done) {
  auto* reactor = new Reactor(std::move(on_done));
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

// A handler, on a thread of gRPC's, and a thread of ours.
void RunHandler() {
  Shared shared;
  Call(
      [&](v1::Worker*) {
        shared.AddPlanted();
        return Finished(nullptr);
      },
      [&] { shared.AddPlanted(); });
}

// What a reactor does when its call is over.
void RunOnDone() {
  Shared shared;
  Call([&](v1::Worker*) { return Finished([&] { shared.AddPlanted(); }); }, [&] { shared.AddPlanted(); });
}

// A response that is written when the call was finished already, by a thread the call was handed to.
void RunResponse() {
  std::mutex mutex;
  Reactor* reactor = nullptr;
  v1::Worker* response = nullptr;
  // The response dies behind OnDone. Until then this thread does nothing more: what it locks afterwards, to
  // end the server, could order the two by chance.
  Meeting at_the_end;
  const auto write = [&] { response->set_name("workers/which-has-a-name-that-takes-memory-of-its-own"); };
  Call(
      [&](v1::Worker* r) {
        const std::lock_guard lock(mutex);
        response = r;
        reactor = new Reactor([&] { at_the_end.Arrive(); });
        return reactor;
      },
      [&] {
        for (bool there = false; !there; std::this_thread::yield()) {
          const std::lock_guard lock(mutex);
          there = reactor != nullptr;
        }
        if (mended) write();
        reactor->Finish(grpc::Status::OK);
        if (!mended) write();
        at_the_end.Arrive();
      });
}

// --- Mistakes of memory and arithmetic. ---

// A number that the compiler does not know.
int Unknown(int value) {
  volatile int v = value;
  return v;
}

void RunOverflow() {
  const auto values = std::make_unique<float[]>(static_cast<size_t>(Unknown(64)));
  values[static_cast<size_t>(Unknown(mended ? 63 : 64))] = 1.0f;
  std::printf("%g\n", static_cast<double>(values[static_cast<size_t>(Unknown(0))]));
}

void RunIndex() {
  std::vector<int> values;
  values.reserve(64);
  values.resize(static_cast<size_t>(Unknown(8)));
  values[static_cast<size_t>(Unknown(mended ? 7 : 8))] = 1;  // within its memory, beyond its end
}

void RunSum() {
  const int sum = Unknown(mended ? INT_MAX - 1 : INT_MAX) + Unknown(1);
  std::printf("%d\n", sum);
}

void RunCast() {
  const auto count = static_cast<int>(static_cast<double>(Unknown(3)) * (mended ? 1.0 : 1e300));
  std::printf("%d\n", count);
}

// A response that is used when its call is gone: gRPC's memory, given back by gRPC.
void RunGone() {
  v1::Worker* kept = nullptr;
  Call(
      [&](v1::Worker* response) {
        kept = response;
        return Finished(nullptr);
      },
      [] {});
  if (!mended) kept->set_state(v1::BUSY);  // the server is shut down: every call is over
}

void* volatile last = nullptr;
void RunLeak() {
  for (int i = 0; i < 10; ++i) {
    auto* values = new int[static_cast<size_t>(Unknown(64))];
    last = values;
    if (mended) delete[] values;
  }
}

int Main(int argc, char** argv) {
  struct Mistake {
    const char* name;
    void (*run)();
  };
  constexpr Mistake kMistakes[] = {
      {"counter", RunCounter}, {"handler", RunHandler}, {"on-done", RunOnDone}, {"response", RunResponse},
      {"overflow", RunOverflow}, {"index", RunIndex}, {"sum", RunSum}, {"cast", RunCast},
      {"gone", RunGone}, {"leak", RunLeak},
  };
  mended = argc == 3 && std::string_view(argv[2]) == "--mended";
  if (argc == 2 || mended) {
    for (const Mistake& mistake : kMistakes) {
      if (std::strcmp(argv[1], mistake.name) != 0) continue;
      mistake.run();
      return 0;
    }
  }
  std::fprintf(stderr, "nibble-planted MISTAKE [--mended]; mistakes:");
  for (const Mistake& mistake : kMistakes) std::fprintf(stderr, " %s", mistake.name);
  std::fprintf(stderr, "\n");
  return 2;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }
