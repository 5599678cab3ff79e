#include "server/http.h"

#include <civetweb.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"

namespace nibble::server {
namespace {

int Answer(mg_connection* connection, int code, const char* type, const std::string& body) {
  mg_printf(connection,
            "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: no-store\r\n"
            "Connection: close\r\n\r\n",
            code, mg_get_response_code_text(connection, code), type, body.size());
  const char* method = mg_get_request_info(connection)->request_method;
  if (method == nullptr || std::strcmp(method, "HEAD") != 0) mg_write(connection, body.data(), body.size());
  return code;
}

bool IsRead(mg_connection* connection) {
  const char* method = mg_get_request_info(connection)->request_method;
  return method && (std::strcmp(method, "GET") == 0 || std::strcmp(method, "HEAD") == 0);
}

class CivetHttp : public HttpServer {
 public:
  explicit CivetHttp(HttpHandlers handlers) : handlers_(std::move(handlers)) {}
  ~CivetHttp() override {
    if (context_) Stop();
  }

  bool Start(const std::string& listen) {
    // Without a document root civetweb serves no files.
    const char* options[] = {"listening_ports", listen.c_str(), "num_threads", "2",
                             "request_timeout_ms", "10000", "enable_keep_alive", "no", nullptr};
    mg_callbacks callbacks = {};
    callbacks.log_message = [](const mg_connection*, const char*) { return 1; };
    context_ = mg_start(&callbacks, this, options);
    if (!context_) return false;
    host_ = listen.substr(0, listen.rfind(':'));
    mg_set_request_handler(context_, "/metrics$", &CivetHttp::Metrics, this);
    mg_set_request_handler(context_, "/healthz$", &CivetHttp::Health, this);
    mg_set_request_handler(context_, "/readyz$", &CivetHttp::Ready, this);
    mg_set_request_handler(context_, "**", &CivetHttp::NotFound, this);
    return true;
  }

  int port() const override {
    mg_server_port ports[4] = {};
    const int count = mg_get_server_ports(context_, 4, ports);
    return count > 0 ? ports[0].port : 0;
  }

 private:
  // The library's accepting thread looks whether it should stop every two seconds, or when somebody
  // connects: so we do.
  void Stop() {
    const int at = port();
    std::atomic<bool> stopped{false};
    std::thread stopper([&] {
      mg_stop(context_);
      stopped = true;
    });
    while (!stopped) {
      char error[100];
      if (mg_connection* knock = mg_connect_client(host_.c_str(), at, 0, error, sizeof error)) {
        mg_close_connection(knock);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    stopper.join();
  }

  static int Metrics(mg_connection* connection, void* self) {
    if (!IsRead(connection)) return Answer(connection, 405, "text/plain", "only GET\n");
    return Answer(connection, 200, "text/plain; version=0.0.4; charset=utf-8",
                  static_cast<CivetHttp*>(self)->handlers_.metrics());
  }
  static int Health(mg_connection* connection, void*) {
    return Answer(connection, 200, "text/plain", "ok\n");
  }
  static int Ready(mg_connection* connection, void* self) {
    const bool ready = static_cast<CivetHttp*>(self)->handlers_.ready();
    return Answer(connection, ready ? 200 : 503, "text/plain", ready ? "ready\n" : "not ready\n");
  }
  static int NotFound(mg_connection* connection, void*) {
    return Answer(connection, 404, "text/plain", "there are /metrics, /healthz and /readyz\n");
  }

  const HttpHandlers handlers_;
  std::string host_;
  mg_context* context_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> StartHttp(const std::string& listen, HttpHandlers handlers) {
  auto server = std::make_unique<CivetHttp>(std::move(handlers));
  if (!server->Start(listen)) {
    return Error::Field(Reason::kSpecInvalid, "--http-listen",
                        absl::StrCat("is ", listen,
                                     ", where this process cannot listen; choose another port, "
                                     "or 0 for a free one"))
        .ToStatus();
  }
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace nibble::server
