// The body of a completion or a chat completion, as a client of `moh serve` sends it: fields in range, or an error.
#include "moh/serve/completion_request.h"
#include "tests/fuzz/fuzz.h"

using namespace moh;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto in_range = [](const serve::CompletionRequest& request) {
    const bool fine = request.temperature >= 0 && request.top_p > 0 && request.top_p <= 1 && request.n >= 1 &&
                      request.top_k >= 0 && request.logprobs >= -1 && request.logprobs <= 20 && request.stop.size() <= 16 &&
                      (!request.max_tokens || *request.max_tokens >= 0) &&
                      (!request.activated || (*request.activated > 0 && *request.activated <= 1));
    if (!fine) __builtin_trap();
  };
  const std::string text(fuzz::text_of(data, size));
  fuzz::expect_result_or_error([&] { in_range(serve::parse_completion(text)); });
  fuzz::expect_result_or_error([&] { in_range(serve::parse_chat(text)); });
  return 0;
}
