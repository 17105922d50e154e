// .npy reading and writing. The header is a Python dictionary; the parser below knows exactly the form that NumPy
// writes (three keys with a string, a boolean and a tuple of integers) and evaluates nothing.
#include "moh/io/npy.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string_view>

#include "moh/base/error.h"
#include "moh/io/files.h"
#include "moh/io/shape_bytes.h"

namespace moh::io {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kAlignment = 64;
constexpr std::array<std::string_view, 12> kDtypes = {"u1", "u2", "u4", "u8", "i1", "i2",
                                                      "i4", "i8", "f2", "f4", "f8", "b1"};

bool known_dtype(std::string_view dtype) { return std::find(kDtypes.begin(), kDtypes.end(), dtype) != kDtypes.end(); }

// "{'descr': '<u2', 'fortran_order': False, 'shape': (3, 4), }" and spaces, a newline last.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& prefix) : rest_(text), prefix_(prefix) {}

  std::string descr;
  bool fortran_order = false;
  std::vector<std::int64_t> shape;

  void run() {
    expect('{');
    bool seen[3] = {};
    while (!accept('}')) {
      const std::string key = quoted();
      expect(':');
      const int which = key == "descr" ? 0 : key == "fortran_order" ? 1 : key == "shape" ? 2 : -1;
      MOH_CHECK(which >= 0, prefix_, "the header has the unknown key `", key, "`");
      MOH_CHECK(!seen[which], prefix_, "the header has the key `", key, "` twice");
      seen[which] = true;
      if (which == 0) {
        MOH_CHECK(peek() != '[', prefix_, "structured dtypes are not supported, save one field at a time");
        descr = quoted();
      } else if (which == 1) {
        fortran_order = boolean();
      } else {
        shape = tuple();
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    MOH_CHECK(rest_.empty(), prefix_, "the header has text after its dictionary");
    MOH_CHECK(seen[0] && seen[1] && seen[2], prefix_, "the header lacks descr, fortran_order or shape");
  }

 private:
  void skip_space() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t\n\r"), rest_.size())); }
  char peek() {
    skip_space();
    return rest_.empty() ? '\0' : rest_.front();
  }
  bool accept(char c) {
    if (rest_.empty() || peek() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }
  void expect(char c) { MOH_CHECK(accept(c), prefix_, "the header is damaged, expected `", c, "`"); }

  std::string quoted() {
    const char quote = peek();
    MOH_CHECK(quote == '\'' || quote == '"', prefix_, "the header is damaged, expected a string");
    const std::size_t end = rest_.find(quote, 1);
    MOH_CHECK(end != std::string_view::npos && end <= 64, prefix_, "the header is damaged, a string does not end");
    const std::string text(rest_.substr(1, end - 1));
    for (const char c : text) {
      MOH_CHECK(c >= ' ' && c <= '~' && c != '\\', prefix_, "the header is damaged, a string has odd characters");
    }
    rest_.remove_prefix(end + 1);
    return text;
  }

  bool boolean() {
    skip_space();
    for (const bool value : {false, true}) {
      const std::string_view name = value ? "True" : "False";
      if (!rest_.starts_with(name)) continue;
      rest_.remove_prefix(name.size());
      return value;
    }
    fail(prefix_, "the header is damaged, expected True or False");
  }

  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> sizes;
    expect('(');
    while (!accept(')')) {
      sizes.push_back(integer());
      if (accept(',')) continue;
      expect(')');
      MOH_CHECK(sizes.size() != 1, prefix_, "the shape must be a tuple, got a number in brackets");
      break;
    }
    return sizes;
  }

  std::int64_t integer() {
    const char first = peek();
    MOH_CHECK(first >= '0' && first <= '9', prefix_, "the shape must hold non-negative integers");
    std::int64_t value = 0;
    while (!rest_.empty() && rest_.front() >= '0' && rest_.front() <= '9') {
      MOH_CHECK(
          !__builtin_mul_overflow(value, 10, &value) && !__builtin_add_overflow(value, rest_.front() - '0', &value),
          prefix_, "the shape holds too large a number");
      rest_.remove_prefix(1);
    }
    if (!rest_.empty() && rest_.front() == 'L') rest_.remove_prefix(1);  // Python 2 wrote (3L,)
    return value;
  }

  std::string_view rest_;
  const std::string& prefix_;
};

}  // namespace

NpyHeader read_npy_header(std::span<const std::byte> file, const std::string& label) {
  const std::string prefix = "[npy] " + label + ": ";
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  MOH_CHECK(text.starts_with(kMagic), prefix, "not a .npy file (it does not begin with \\x93NUMPY)");
  MOH_CHECK(text.size() >= 8, prefix, "the file is cut short");
  const int major = static_cast<unsigned char>(text[6]);
  const int minor = static_cast<unsigned char>(text[7]);
  MOH_CHECK(major >= 1 && major <= 3 && minor == 0, prefix, "expected format version 1.0 to 3.0, got ", major, ".",
            minor);
  const std::size_t length_bytes = major == 1 ? 2 : 4;
  MOH_CHECK(text.size() >= 8 + length_bytes, prefix, "the file is cut short");
  std::size_t length = 0;
  for (std::size_t i = 0; i < length_bytes; ++i) {
    length |= static_cast<std::size_t>(static_cast<unsigned char>(text[8 + i])) << (8 * i);
  }
  NpyHeader header;
  header.data_offset = 8 + length_bytes + length;
  MOH_CHECK(header.data_offset <= text.size(), prefix, "the header of ", length, " bytes does not fit into the file's ",
            text.size());

  HeaderParser parser(text.substr(8 + length_bytes, length), prefix);
  parser.run();
  const std::string& descr = parser.descr;
  MOH_CHECK(!descr.starts_with('>'), prefix, "dtype ", descr,
            " is big-endian; save it as array.astype(array.dtype.newbyteorder('<'))");
  const bool one_byte = descr.ends_with('1');
  const bool ordered = descr.starts_with('<') || (one_byte && descr.starts_with('|'));
  header.dtype = ordered ? descr.substr(1) : "";
  MOH_CHECK(known_dtype(header.dtype), prefix, "dtype ", descr, " is not supported, expected little-endian ",
            "integers, floats or bool such as <u2, <f4, |u1, |b1");
  MOH_CHECK(!parser.fortran_order || parser.shape.size() <= 1, prefix,
            "the array is in Fortran order; save numpy.ascontiguousarray(array)");
  header.shape = std::move(parser.shape);
  const auto bytes = shape_bytes(header.shape, header.dtype[1] - '0');
  MOH_CHECK(bytes, prefix, "the shape has too many elements");
  const std::size_t data_bytes = text.size() - header.data_offset;
  MOH_CHECK(*bytes == data_bytes, prefix, "the shape needs ", *bytes, " bytes of data, the file has ", data_bytes);
  return header;
}

// Byte for byte what numpy.save writes, the spare room for a growing first axis included.
std::string npy_head(const std::string& dtype, const std::vector<std::int64_t>& shape) {
  std::string sizes;
  for (const std::int64_t size : shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  if (shape.size() == 1) sizes += ",";
  std::string header = "{'descr': '" + std::string(dtype[1] == '1' ? "|" : "<") + dtype +
                       "', 'fortran_order': False, 'shape': (" + sizes + "), }";
  constexpr std::size_t kGrowthDigits = 21;
  if (!shape.empty()) header.append(kGrowthDigits - std::to_string(shape[0]).size(), ' ');
  const std::size_t start = kMagic.size() + 2 + 2;
  header.append(kAlignment - (start + header.size() + 1) % kAlignment, ' ');
  header += '\n';
  MOH_CHECK(header.size() <= std::numeric_limits<std::uint16_t>::max(), "[npy] the shape has too many axes");
  std::string head(kMagic);
  head += {'\x01', '\x00', static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  return head + header;
}

void write_npy(const std::string& path, const std::string& dtype, const std::vector<std::int64_t>& shape,
               std::span<const std::byte> data) {
  const std::string prefix = "[npy] " + path + ": ";
  MOH_CHECK(known_dtype(dtype), prefix, "dtype ", dtype, " is not supported, expected one such as u2 or f4");
  const auto bytes = shape_bytes(shape, dtype[1] - '0');
  MOH_CHECK(bytes && *bytes == data.size(), prefix, "the shape and dtype ", dtype, " do not fit ", data.size(),
            " bytes of data");
  const std::string head = npy_head(dtype, shape);
  write_file(path, [&](const Sink& write) {
    write(std::as_bytes(std::span(head)));
    write(data);
  });
}

}  // namespace moh::io
