#include "moh/serve/http_server.h"

#include <poll.h>
#include <sys/socket.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "moh/base/error.h"

namespace moh::serve {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using Code = boost::system::error_code;

constexpr int kHttp11 = 11;

// Waits until the socket can be read. False: the time is over.
bool wait_readable(tcp::socket& socket, std::chrono::milliseconds time) {
  pollfd entry = {socket.native_handle(), POLLIN, 0};
  return ::poll(&entry, 1, static_cast<int>(time.count())) > 0;
}

class Connection : public HttpReply {
 public:
  Connection(tcp::socket socket, const HttpLimits& limits) : socket_(std::move(socket)), limits_(limits) {
    const timeval time = {limits.request_seconds, 0};
    ::setsockopt(socket_.native_handle(), SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
    ::setsockopt(socket_.native_handle(), SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    Code ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
  }

  tcp::socket& socket() { return socket_; }

  // Serves requests until the client goes, asks for it, or `stop`.
  void serve(const HttpHandler& handler, const std::function<std::string(int, const std::string&)>& refuse,
             const std::atomic<bool>& stop) {
    while (!stop && wait_for_request(stop)) {
      http::request_parser<http::string_body> parser;
      parser.header_limit(static_cast<std::uint32_t>(limits_.header_bytes));
      parser.body_limit(static_cast<std::uint64_t>(limits_.body_bytes));
      keep_alive_ = false;
      sent_ = false;
      if (const auto trouble = read(parser)) {
        if (trouble->first > 0) send(trouble->first, "application/json", refuse(trouble->first, trouble->second));
        return linger();
      }
      const auto& message = parser.get();
      keep_alive_ = message.keep_alive();
      HttpRequest request;
      request.method = std::string(message.method_string());
      request.path = std::string(message.target().substr(0, message.target().find('?')));
      request.body = message.body();
      request.authorization = std::string(message[http::field::authorization]);
      handler(request, *this);
      if (!sent_ || !keep_alive_) return;
    }
  }

  void send(int status, std::string_view content_type, std::string_view body) override {
    http::response<http::string_body> response(static_cast<http::status>(status), kHttp11);
    response.set(http::field::content_type, std::string(content_type));
    if (status == 429 || status == 503) response.set(http::field::retry_after, "1");
    if (status == 401) response.set(http::field::www_authenticate, "Bearer");
    response.keep_alive(keep_alive_);
    response.body() = std::string(body);
    response.prepare_payload();
    Code error;
    http::write(socket_, response, error);
    sent_ = !error;
  }

  void begin(std::string_view content_type) override {
    http::response<http::empty_body> response(http::status::ok, kHttp11);
    response.set(http::field::content_type, std::string(content_type));
    response.set(http::field::cache_control, "no-cache");
    response.chunked(true);
    response.keep_alive(keep_alive_);
    http::response_serializer<http::empty_body> serializer(response);
    Code error;
    http::write_header(socket_, serializer, error);
    sent_ = !error;
  }

  bool write(std::string_view chunk) override {
    if (!sent_ || chunk.empty()) return sent_;
    Code error;
    asio::write(socket_, http::make_chunk(asio::buffer(chunk.data(), chunk.size())), error);
    sent_ = !error;
    return sent_;
  }

  void end() override {
    if (!sent_) return;
    Code error;
    asio::write(socket_, http::make_chunk_last(), error);
    sent_ = !error;
  }

  bool connected() override {
    char byte;
    const auto size = ::recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return size > 0 || (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK));
  }

 private:
  bool wait_for_request(const std::atomic<bool>& stop) {
    if (buffer_.size() > 0) return true;
    const auto until = Clock::now() + std::chrono::seconds(limits_.idle_seconds);
    while (!stop && Clock::now() < until) {
      if (wait_readable(socket_, std::chrono::milliseconds(200))) return true;
    }
    return false;
  }

  // Nothing, or the status and message of a refusal; status 0: the client has gone.
  std::optional<std::pair<int, std::string>> read(http::request_parser<http::string_body>& parser) {
    const auto until = Clock::now() + std::chrono::seconds(limits_.request_seconds);
    Code error;
    while (!parser.is_done()) {
      if (Clock::now() > until) return std::pair(408, std::string("the request did not arrive in time"));
      http::read_some(socket_, buffer_, parser, error);
      if (parser.is_header_done() && parser.get()[http::field::expect] == "100-continue" && !continued_) {
        continued_ = true;
        Code ignored;
        asio::write(socket_, asio::buffer(std::string_view("HTTP/1.1 100 Continue\r\n\r\n")), ignored);
      }
      if (!error) continue;
      if (error == http::error::body_limit) {
        return std::pair(413, "the body is larger than " + std::to_string(limits_.body_bytes) + " bytes");
      }
      if (error == http::error::header_limit || error == http::error::buffer_overflow) {
        return std::pair(431, "the header is larger than " + std::to_string(limits_.header_bytes) + " bytes");
      }
      if (error.category() == http::make_error_code(http::error::bad_method).category() &&
          error != http::error::end_of_stream && error != http::error::partial_message) {
        return std::pair(400, std::string("this is not an HTTP request"));
      }
      return std::pair(0, std::string());
    }
    continued_ = false;
    return std::nullopt;
  }

  // After a refusal the client may still be sending: what it sends is read and thrown away for a moment, or the reply
  // would be lost to a reset.
  void linger() {
    Code ignored;
    socket_.shutdown(tcp::socket::shutdown_send, ignored);
    char waste[4096];
    for (int i = 0; i < 64 && wait_readable(socket_, std::chrono::milliseconds(100)); ++i) {
      if (::recv(socket_.native_handle(), waste, sizeof waste, MSG_DONTWAIT) <= 0) break;
    }
  }

  tcp::socket socket_;
  const HttpLimits& limits_;
  beast::flat_buffer buffer_;
  bool keep_alive_ = false, sent_ = false, continued_ = false;
};

}  // namespace

struct HttpServer::Impl {
  HttpLimits limits;
  HttpHandler handler;
  std::function<std::string(int, const std::string&)> refuse;
  asio::io_context context;
  tcp::acceptor acceptor{context};
  std::mutex mutex;
  std::condition_variable ended;
  std::set<Connection*> open;
  int threads = 0;
};

HttpServer::HttpServer(const std::string& host, int port, const HttpLimits& limits, HttpHandler handler,
                       std::function<std::string(int, const std::string&)> refuse)
    : impl_(std::make_unique<Impl>()) {
  impl_->limits = limits;
  impl_->handler = std::move(handler);
  impl_->refuse = std::move(refuse);
  try {
    const auto found = tcp::resolver(impl_->context).resolve(host, std::to_string(port));
    const tcp::endpoint endpoint = *found.begin();
    impl_->acceptor.open(endpoint.protocol());
    impl_->acceptor.set_option(tcp::acceptor::reuse_address(true));
    impl_->acceptor.bind(endpoint);
    impl_->acceptor.listen(1024);
  } catch (const boost::system::system_error& error) {
    fail("[serve] cannot listen on ", host, " port ", port, ": ", error.code().message(),
         "; is another server running there? choose another --port or --host");
  }
}

HttpServer::~HttpServer() = default;

int HttpServer::port() const { return impl_->acceptor.local_endpoint().port(); }

void HttpServer::run(const std::atomic<bool>& stop, int drain_seconds) {
  Impl& server = *impl_;
  server.acceptor.non_blocking(true);
  pollfd entry = {server.acceptor.native_handle(), POLLIN, 0};
  while (!stop) {
    if (::poll(&entry, 1, 100) <= 0) continue;
    Code error;
    tcp::socket socket = server.acceptor.accept(error);
    if (error) continue;
    socket.non_blocking(false, error);
    const std::lock_guard lock(server.mutex);
    const bool full = server.threads >= server.limits.connections;
    ++server.threads;
    std::thread([&server, &stop, full, taken = std::move(socket)]() mutable {
      {
        Connection connection(std::move(taken), server.limits);
        {
          const std::lock_guard inner(server.mutex);
          server.open.insert(&connection);
        }
        try {
          if (full) {
            connection.send(503, "application/json", server.refuse(503, "too many connections; try again"));
          } else {
            connection.serve(server.handler, server.refuse, stop);
          }
        } catch (const std::exception&) {  // of this connection alone: it is closed
        }
        const std::lock_guard inner(server.mutex);
        server.open.erase(&connection);
      }
      const std::lock_guard inner(server.mutex);
      --server.threads;
      server.ended.notify_all();
    }).detach();
  }
  Code ignored;
  server.acceptor.close(ignored);
  std::unique_lock lock(server.mutex);
  const auto nobody = [&] { return server.threads == 0; };
  if (!server.ended.wait_for(lock, std::chrono::seconds(drain_seconds), nobody)) {
    for (Connection* const each : server.open) ::shutdown(each->socket().native_handle(), SHUT_RDWR);
    server.ended.wait(lock, nobody);
  }
}

}  // namespace moh::serve
