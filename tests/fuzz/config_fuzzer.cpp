// config.json of a language model: what is accepted can be written and is then accepted again.
#include "moh/models/llama_config.h"
#include "tests/fuzz/fuzz.h"

using namespace moh;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::expect_result_or_error([&] {
    const models::LlamaConfig config =
        models::parse_llama_config(parse_json(fuzz::text_of(data, size), "config.json"), "config.json");
    const Json written = models::llama_config_json(config);
    try {
      models::parse_llama_config(written, "config.json");
    } catch (const Error&) {
      __builtin_trap();
    }
  });
  return 0;
}
