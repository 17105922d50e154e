// An HTTP/1.1 server of the small kind: a thread a connection, requests of bounded size and time, replies whole or in
// chunks. Knows nothing of models.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace moh::serve {

struct HttpLimits {
  std::int64_t header_bytes = 16 << 10, body_bytes = 8 << 20;
  int connections = 256;     // more are told 503
  int request_seconds = 20;  // for a request to arrive, once it has begun; and for a client to take what it is sent
  int idle_seconds = 75;     // between two requests of a connection
};

struct HttpRequest {
  std::string method, path, body, authorization;
};

class HttpReply {
 public:
  virtual ~HttpReply() = default;
  virtual void send(int status, std::string_view content_type, std::string_view body) = 0;
  // A reply in chunks: once begin, then write, then end. write is false when the client has gone.
  virtual void begin(std::string_view content_type) = 0;
  virtual bool write(std::string_view chunk) = 0;
  virtual void end() = 0;
  // False once the client has hung up.
  virtual bool connected() = 0;
};

using HttpHandler = std::function<void(const HttpRequest&, HttpReply&)>;

class HttpServer {
 public:
  // Listens from now on; port 0 takes a free one. Errors: the address cannot be used. `handler` runs on the threads of
  // the connections; `refuse` makes the body of a reply that the server itself gives (status, message).
  HttpServer(const std::string& host, int port, const HttpLimits& limits, HttpHandler handler,
             std::function<std::string(int, const std::string&)> refuse);
  ~HttpServer();
  int port() const;
  // Accepts connections until `stop` is true, then lets those that are answering finish, at most `drain_seconds`.
  void run(const std::atomic<bool>& stop, int drain_seconds);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moh::serve
