// tokenizer.json, and the tokenizer it makes at work: ids stay inside the vocabulary and can be decoded.
#include "moh/text/tokenizer_pipeline.h"
#include "tests/fuzz/fuzz.h"

using namespace moh;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::expect_result_or_error([&] {
    const std::string_view content = fuzz::text_of(data, size);
    const Json root = parse_json(content, "tokenizer.json", text::kTokenizerJsonDepth);
    const text::PipelineTokenizer tokenizer(text::parts_of_tokenizer_json(root, "tokenizer.json"));
    const std::string text =
        "The caf\xc3\xa9  isn't\n\n12 \xf0\x9f\x99\x82\xff<s>" + std::string(content.substr(0, 64));
    for (const bool parse_special : {false, true}) tokenizer.decode(tokenizer.encode(text, parse_special));
  });
  return 0;
}
