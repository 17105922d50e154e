// Many generations at once from one model: requests come and go between steps, and one step is one forward pass over
// chunks of prompts and decoding sequences together (continuous batching). Knows nothing of HTTP.
//
// What a request gets does not depend on what else runs, to the bit: products are made row by row
// (ops/packed_linear.h), attention cuts keys by their position alone (kernels/head_attention.h), and prompts are always
// cut into chunks at multiples of kPageTokens, generated tokens never. So a request that had to give up its pages and
// is computed again, or that finds the beginning of its prompt computed already, gets the same numbers.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moh/models/llama.h"
#include "moh/serve/page_pool.h"
#include "moh/text/sampler.h"

namespace moh::serve {

struct TokenLogprob {
  std::int64_t id = -1;
  double logprob = 0;
};

// One token that the request's owner is told of: of the prompt, if it asked for echo, or generated.
struct Token {
  std::int64_t id = -1;
  bool of_prompt = false;
  std::optional<double> logprob;  // if asked for; the first token of a prompt has none
  std::vector<TokenLogprob> top;  // as many as asked for, best first
  // If asked for: per layer '1' for every query head that was computed to choose this token, '0' for the others. A
  // dense model's are empty.
  std::vector<std::string> heads;
};

enum class Finish { kStop, kLength, kCancelled, kError };

struct Request {
  std::vector<std::int64_t> prompt;  // at least one
  std::int64_t max_tokens = 16;
  text::SamplingOptions sampling;
  std::vector<std::int64_t> end_ids;
  bool echo = false;                // tells of the prompt's tokens, too
  std::int64_t top_logprobs = -1;   // -1: no log-probabilities; of the model's own distribution, before the sampler
  bool tell_heads = false;          // see Token
  std::optional<double> activated;  // share of the heads; the model's own unless given
  // Called by step(), on its thread. on_token returns false to end the request (a stop string was found).
  std::function<bool(const Token&)> on_token;
  std::function<void(Finish, const std::string& error)> on_finish;
};

struct EngineOptions {
  std::int64_t max_sequences = 64;    // computed at the same time; more wait
  std::int64_t cache_tokens = 16384;  // room of the KV cache
  std::int64_t step_tokens = 512;     // tokens of one forward pass, at least one chunk
};

struct EngineState {
  std::int64_t waiting = 0, running = 0, pages = 0, used_pages = 0, kept_pages = 0;
  std::int64_t prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0, preemptions = 0, steps = 0;
};

class Engine {
 public:
  // The model's weights are packed for row-wise products. Errors: a model that is not on the CPU.
  Engine(models::Llama& model, const EngineOptions& options);
  ~Engine();

  // The number by which it can be cancelled. Errors, each in one line: what of the request is out of range; a prompt
  // that leaves no room in the model's context or in the cache.
  std::int64_t submit(Request request);
  // Frees its place and its pages; on_finish is told. Nothing if it has ended.
  void cancel(std::int64_t number);
  // One forward pass. False: there is nothing to do.
  bool step();
  EngineState state() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moh::serve
