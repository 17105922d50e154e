// The OpenAI-compatible service over an engine: what every path does, and the thread that steps the engine.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "moh/models/llama.h"
#include "moh/serve/engine.h"
#include "moh/serve/http_server.h"
#include "moh/text/tokenizer.h"

namespace moh::serve {

struct ServiceOptions {
  EngineOptions engine;
  std::string folder;                // of the model: chat template, end tokens, tokenizer_config.json
  std::string name;                  // what /v1/models and replies call it
  std::string api_key;               // "": none is asked for
  std::int64_t waiting = 256;        // requests that may wait; more are told 429
  std::int64_t default_tokens = 16;  // of a completion that does not say max_tokens (OpenAI's)
};

class Service {
 public:
  // Takes the model over: its weights are packed and its share of heads changes with the requests.
  Service(models::Llama& model, std::shared_ptr<const text::Tokenizer> tokenizer, const ServiceOptions& options);
  ~Service();

  void handle(const HttpRequest& request, HttpReply& reply);
  // The body of an error reply.
  static std::string error_body(int status, const std::string& message);
  EngineState state() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moh::serve
