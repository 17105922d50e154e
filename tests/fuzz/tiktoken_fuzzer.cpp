// tiktoken ranks: the input as a file, and, since a file must hold all bytes to be of use, pieces of the input as
// tokens of a file that does.
#include <algorithm>
#include <numeric>

#include "moh/text/tokenizer_pipeline.h"
#include "tests/fuzz/fuzz.h"

using namespace moh;

namespace {

std::string base64(std::string_view bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    const std::size_t count = std::min<std::size_t>(3, bytes.size() - i);
    for (std::size_t k = 0; k < 3; ++k) group = group << 8 | (k < count ? static_cast<unsigned char>(bytes[i + k]) : 0);
    for (std::size_t k = 0; k < 4; ++k) text += k <= count ? kDigits[group >> (18 - 6 * k) & 63] : '=';
  }
  return text;
}

const std::string& all_bytes() {
  static const std::string lines = [] {
    std::string text;
    for (int byte = 0; byte < 256; ++byte) {
      text += base64(std::string(1, static_cast<char>(byte))) + ' ' + std::to_string(byte) + '\n';
    }
    return text;
  }();
  return lines;
}

void read_and_use(const std::string& content, std::string_view text) {
  fuzz::expect_result_or_error([&] {
    const text::PipelineTokenizer tokenizer(text::parts_of_tiktoken(content, "tokenizer.model"));
    tokenizer.decode(tokenizer.encode(text, true));
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input = fuzz::text_of(data, size);
  text::is_tiktoken(input);
  read_and_use(std::string(input), input);
  // The second kind takes 25 times as long, so an eighth of the inputs. Not by their size: many mutations keep that.
  if (std::accumulate(data, data + size, 0u) % 8 != 0) return 0;
  std::string content = all_bytes();
  int rank = 256;
  for (std::size_t at = 0; at < size;) {
    const std::size_t length = std::min<std::size_t>(2 + data[at] % 6, size - at);
    content += base64(input.substr(at, length)) + ' ' + std::to_string(rank++) + '\n';
    at += length;
  }
  read_and_use(content, input);
  return 0;
}
