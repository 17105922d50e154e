#include "moh/data/text_file.h"

#include <algorithm>

#include "moh/base/error.h"
#include "moh/io/files.h"
#include "moh/text/utf8.h"

namespace moh::data {
namespace {

struct Magic {
  std::string_view start;
  const char* what;
};
using namespace std::string_view_literals;
constexpr Magic kMagics[] = {{"\x1f\x8b"sv, "compressed by gzip; unpack it first (gunzip)"},
                             {"\x28\xb5\x2f\xfd"sv, "compressed by Zstandard; unpack it first (unzstd)"},
                             {"PK\x03\x04"sv, "a zip archive; unpack it first (unzip)"},
                             {"PAR1"sv, "a Parquet table; write its text column as a text file"},
                             {"%PDF-"sv, "a PDF document; take the text out of it first (pdftotext)"},
                             {"\xff\xfe\0\0"sv, "UTF-32; make it UTF-8 first (iconv -f UTF-32 -t UTF-8)"},
                             {"\0\0\xfe\xff"sv, "UTF-32; make it UTF-8 first (iconv -f UTF-32 -t UTF-8)"},
                             {"\xff\xfe"sv, "UTF-16; make it UTF-8 first (iconv -f UTF-16 -t UTF-8)"},
                             {"\xfe\xff"sv, "UTF-16; make it UTF-8 first (iconv -f UTF-16 -t UTF-8)"}};

constexpr std::size_t kLookedAt = 1 << 16;

}  // namespace

std::string not_text_reason(std::string_view content) {
  for (const Magic& magic : kMagics) {
    if (content.starts_with(magic.start) && (magic.start != "PAR1" || content.ends_with("PAR1"))) return magic.what;
  }
  const std::string_view part = content.substr(0, kLookedAt);
  const auto zeros = static_cast<std::size_t>(std::count(part.begin(), part.end(), '\0'));
  if (zeros * 4 > part.size()) return "UTF-16 or binary; make it UTF-8 first (iconv -f UTF-16LE -t UTF-8)";
  std::size_t broken = 0, characters = 0;
  for (std::string_view rest = part; !rest.empty(); ++characters) {
    const std::size_t length = text::utf8_length(rest);
    broken += length == 0 ? 1 : 0;
    rest.remove_prefix(std::max<std::size_t>(length, 1));
  }
  // Latin-1 has less even in French; a stray zero or broken character is no reason.
  if (broken * 5 > characters || zeros * 100 > part.size()) {
    return "binary, or text in another encoding than UTF-8 (iconv converts it)";
  }
  return "";
}

std::string read_text_file(const std::string& path) {
  std::string content = io::read_file(path);
  const std::string reason = not_text_reason(content);
  MOH_CHECK(reason.empty(), "[data] ", path, " is not a text but ", reason);
  return content;
}

}  // namespace moh::data
