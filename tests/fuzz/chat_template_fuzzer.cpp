// Chat templates: the input is one, and is rendered for a conversation that has a bit of everything.
#include "moh/text/chat_template.h"
#include "tests/fuzz/fuzz.h"

using namespace moh;

namespace {

const Json& conversation() {
  static const Json json = parse_json(R"({"messages": [{"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "2+2? <think>\\u00e9\\n"}, {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdefghi",
     "type": "function", "function": {"name": "f", "arguments": {"a": [1, 2.5, null, true]}}}]},
    {"role": "tool", "content": "4"}, {"role": "user", "content": [{"type": "text", "text": "so"}, {"type": "image"}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>", "n": 7, "x": -2.5})",
                                      "fuzz");
  return json;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::expect_result_or_error([&] {
    // Small limits, so that an input that uses them up is soon done with.
    const text::ChatTemplate chat(fuzz::text_of(data, size), "fuzz", {.steps = 200'000, .bytes = 1 << 22});
    const std::string text = chat.render(conversation());
    fuzz::require(text.size() <= 1 << 22);
  });
  return 0;
}
