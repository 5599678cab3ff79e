#include "server/rpc/interceptor.h"

#include <string>

#include "base/clock.h"

namespace nibble::server {
namespace {

using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::ServerRpcInfo;

const char* TypeName(ServerRpcInfo::Type type) {
  switch (type) {
    case ServerRpcInfo::Type::UNARY: return "unary";
    case ServerRpcInfo::Type::CLIENT_STREAMING: return "client_stream";
    case ServerRpcInfo::Type::SERVER_STREAMING: return "server_stream";
    case ServerRpcInfo::Type::BIDI_STREAMING: return "bidi_stream";
  }
  return "unknown";
}

// As go-grpc-prometheus spells them; dashboards know these words.
const char* CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {
      "OK",           "Canceled",       "Unknown",            "InvalidArgument", "DeadlineExceeded",
      "NotFound",     "AlreadyExists",  "PermissionDenied",   "ResourceExhausted", "FailedPrecondition",
      "Aborted",      "OutOfRange",     "Unimplemented",      "Internal",        "Unavailable",
      "DataLoss",     "Unauthenticated"};
  const int index = static_cast<int>(code);
  return index >= 0 && index <= 16 ? kNames[index] : "Unknown";
}

class MeterInterceptor : public grpc::experimental::Interceptor {
 public:
  MeterInterceptor(Meter* meter, ServerRpcInfo* info)
      : meter_(meter),
        type_(TypeName(info->type())),
        method_(info->method()),
        begin_us_(RealClock::Get().NowMonotonicUs()) {
    meter_->OnCallStarted(type_, method_);
  }
  // A call whose peer went away ends without a status of ours.
  ~MeterInterceptor() override { Handled(grpc::StatusCode::CANCELLED); }

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_MESSAGE) &&
        methods->GetRecvMessage() != nullptr) {
      meter_->OnMessage(type_, method_, /*received=*/true);
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_MESSAGE)) {
      meter_->OnMessage(type_, method_, /*received=*/false);
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      Handled(methods->GetSendStatus().error_code());
    }
    methods->Proceed();
  }

 private:
  void Handled(grpc::StatusCode code) {
    if (handled_) return;
    handled_ = true;
    meter_->OnCallHandled(type_, method_, CodeName(code), RealClock::Get().NowMonotonicUs() - begin_us_);
  }

  Meter* meter_;
  const char* type_;
  const std::string method_;
  const int64_t begin_us_;
  bool handled_ = false;
};

class Factory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit Factory(Meter* meter) : meter_(meter) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(ServerRpcInfo* info) override {
    return new MeterInterceptor(meter_, info);
  }

 private:
  Meter* meter_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> NewMeterInterceptor(Meter* meter) {
  return std::make_unique<Factory>(meter);
}

}  // namespace nibble::server
