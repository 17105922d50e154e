// `moh bench serve`: what clients of an OpenAI-compatible server wait for. Works on any server of that kind; the
// command starts one of ours.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "moh/base/fields.h"

namespace moh::bench {

struct ServingOptions {
  std::string host = "127.0.0.1", model;  // name that requests carry
  int port = 0;
  std::int64_t requests = 64, concurrency = 16;
  double rate = 0;  // requests a second, at random times; 0: as fast as they end
  std::int64_t shortest_prompt = 64, longest_prompt = 512;  // tokens, evenly distributed
  std::int64_t shortest_reply = 16, longest_reply = 128;
  double hang_up = 0;  // share of the clients that hang up after a few tokens
  std::optional<double> activated;
  bool verify = false;            // every whole reply is asked for once more, alone, and must be the same
  std::int64_t vocabulary = 256;  // prompts are random tokens below it
  std::uint64_t seed = 0;
};

// Greedy completions of random prompts, streamed. Returns
//   requests, completed, hung_up, errors, first_error, seconds, prompt_tokens, generated_tokens, requests_per_second,
//   tokens_per_second (generated), ttft_ms, time_per_token_ms, request_ms: {mean, p50, p90, p99}; with `verify`:
//   verified, different.
// `on_done` hears how many have ended; `stop` ends it early.
Json time_serving(const ServingOptions& options, const std::atomic<bool>& stop,
                  const std::function<void(std::int64_t)>& on_done);

}  // namespace moh::bench
