#include "moh/eval/records.h"

#include <zlib.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "moh/base/error.h"
#include "moh/eval/python_text.h"
#include "moh/io/files.h"
#include "moh/text/utf8.h"

namespace moh::eval {
namespace {

constexpr std::size_t kMaxBytes = std::size_t{1} << 30;
constexpr int kMaxDepth = 8;

std::string unpack(const std::string& packed, const std::string& path) {
  z_stream stream{};
  MOH_CHECK(inflateInit2(&stream, 15 + 16) == Z_OK, "[eval] ", path, ": zlib does not start");
  const struct End {
    z_stream* stream;
    ~End() { inflateEnd(stream); }
  } end{&stream};
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  std::string text, piece(std::size_t{1} << 16, '\0');
  for (;;) {
    stream.next_out = reinterpret_cast<Bytef*>(piece.data());
    stream.avail_out = static_cast<uInt>(piece.size());
    const int status = inflate(&stream, Z_NO_FLUSH);
    text.append(piece, 0, piece.size() - stream.avail_out);
    MOH_CHECK(text.size() <= kMaxBytes, "[eval] ", path, " unpacks to more than ", kMaxBytes, " bytes");
    if (status == Z_STREAM_END) {
      if (stream.avail_in == 0) return text;
      MOH_CHECK(inflateReset(&stream) == Z_OK, "[eval] ", path, ": damaged gzip data");  // another part follows
      continue;
    }
    MOH_CHECK(status == Z_OK && (stream.avail_in > 0 || stream.avail_out == 0), "[eval] ", path,
              ": damaged or cut gzip data");
  }
}

std::string shortened(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 60);
}

}  // namespace

void Record::refuse(const std::string& why) const { fail("[eval] ", place_, ": ", why); }

const Json& Record::field(const char* name) const {
  const auto found = fields_.find(name);
  if (found == fields_.end()) {
    std::string names;
    for (const auto& item : fields_.items()) names += (names.empty() ? "" : ", ") + item.key();
    refuse(detail::concat("there is no field `", name, "`; there are: ", names.substr(0, 200)));
  }
  return *found;
}

std::string Record::text(const char* name) const {
  const Json& value = field(name);
  if (!value.is_string()) refuse(detail::concat("field `", name, "` must be text, got ", shortened(value)));
  return value.get<std::string>();
}

std::int64_t Record::integer(const char* name) const {
  const Json& value = field(name);
  if (value.is_boolean()) return value.get<bool>() ? 1 : 0;
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (value.is_string()) {
    const auto digits = value.get<std::string>();
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (error == std::errc{} && end == digits.data() + digits.size() && !digits.empty()) return number;
  }
  refuse(detail::concat("field `", name, "` must be a whole number, got ", shortened(value)));
}

std::vector<std::string> Record::texts(const char* name) const {
  const Json& value = field(name);
  const bool fits =
      value.is_array() && std::all_of(value.begin(), value.end(), [](const Json& item) { return item.is_string(); });
  if (!fits) refuse(detail::concat("field `", name, "` must be a list of texts, got ", shortened(value)));
  return value.get<std::vector<std::string>>();
}

std::vector<std::int64_t> Record::integers(const char* name) const {
  const Json& value = field(name);
  const bool fits = value.is_array() &&
                    std::all_of(value.begin(), value.end(), [](const Json& item) { return item.is_number_integer(); });
  if (!fits) refuse(detail::concat("field `", name, "` must be a list of whole numbers, got ", shortened(value)));
  return value.get<std::vector<std::int64_t>>();
}

Record Record::object(const char* name) const {
  const Json& value = field(name);
  if (!value.is_object()) refuse(detail::concat("field `", name, "` must be an object, got ", shortened(value)));
  return {value, place_ + ", `" + name + "`"};
}

int Record::index(std::int64_t value, std::size_t count) const {
  if (value < 0 || value >= static_cast<std::int64_t>(count)) {
    refuse(detail::concat("the answer is number ", value, " (from 0) of ", count, " choices"));
  }
  return static_cast<int>(value);
}

std::string read_text(const std::string& path) {
  std::string text = io::read_file(path, kMaxBytes);
  if (path.ends_with(".gz")) text = unpack(text, path);
  if (text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);
  MOH_CHECK(text::is_utf8(text), "[eval] ", path, " is not UTF-8 text");
  return text;
}

std::vector<Record> read_json_lines(const std::string& path) {
  std::vector<Record> records;
  const std::string text = read_text(path);
  std::size_t number = 0;
  for (const std::string_view line : split(text, "\n")) {
    ++number;
    if (strip(line).empty()) continue;
    const std::string place = path + ", line " + std::to_string(number);
    Json fields = parse_json(line, "eval: " + place, kMaxDepth);
    MOH_CHECK(fields.is_object(), "[eval] ", place, ": must be an object like {\"question\": ...}, got ",
              fields.type_name());
    records.emplace_back(std::move(fields), place);
  }
  return records;
}

std::vector<std::vector<std::string>> read_csv(const std::string& path) {
  const std::string text = read_text(path);
  std::vector<std::vector<std::string>> rows;
  std::size_t at = 0;
  while (at < text.size()) {
    std::vector<std::string> row;
    for (bool in_row = true; in_row;) {
      std::string& cell = row.emplace_back();
      if (at < text.size() && text[at] == '"') {
        for (++at;; ++at) {
          MOH_CHECK(at < text.size(), "[eval] ", path, ", row ", rows.size() + 1, ": a quote is never closed");
          if (text[at] == '"' && (at + 1 == text.size() || text[at + 1] != '"')) break;
          if (text[at] == '"') ++at;
          cell += text[at];
        }
        ++at;
      }
      while (at < text.size() && text[at] != ',' && text[at] != '\n') cell += text[at++];
      in_row = at < text.size() && text[at] == ',';
      if (!in_row && cell.ends_with('\r')) cell.pop_back();
      ++at;
    }
    if (row.size() == 1 && row[0].empty()) continue;
    MOH_CHECK(rows.empty() || row.size() == rows[0].size(), "[eval] ", path, ", row ", rows.size() + 1, ": ",
              row.size(), " fields, but the first row has ", rows[0].size());
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<Record> read_named_csv(const std::string& path) {
  const auto rows = read_csv(path);
  std::vector<Record> records;
  for (std::size_t i = 1; i < rows.size(); ++i) {
    Json fields = Json::object();
    for (std::size_t column = 0; column < rows[0].size(); ++column) fields[rows[0][column]] = rows[i][column];
    records.emplace_back(std::move(fields), path + ", row " + std::to_string(i + 1));
  }
  return records;
}

bool has_extension(const std::string& path, const std::string& extension) {
  return path.ends_with(extension) || path.ends_with(extension + ".gz");
}

std::string find_file(const std::string& folder, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    for (const char* extension : {".jsonl", ".json", ".csv", ".txt"}) {
      for (const char* packed : {"", ".gz"}) {
        const std::string path = folder + "/" + name + extension + packed;
        std::error_code error;
        if (std::filesystem::is_regular_file(path, error)) return path;
      }
    }
  }
  return "";
}

}  // namespace moh::eval
