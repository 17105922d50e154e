// Benchmark files: JSON lines, CSV or text, packed by gzip or not, and where they lie.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moh/base/fields.h"

namespace moh::eval {

// A benchmark's record with the place that errors name.
class Record {
 public:
  Record(Json fields, std::string place) : fields_(std::move(fields)), place_(std::move(place)) {}

  bool has(const char* name) const { return fields_.contains(name); }
  std::string text(const char* name) const;
  std::int64_t integer(const char* name) const;  // also true and false, and digits in quotes
  std::vector<std::string> texts(const char* name) const;
  std::vector<std::int64_t> integers(const char* name) const;
  Record object(const char* name) const;

  const Json& fields() const { return fields_; }
  // An error about this record: "[eval] FILE, record 3: ..."
  [[noreturn]] void refuse(const std::string& why) const;
  // `value` as an index of `count` things.
  int index(std::int64_t value, std::size_t count) const;

 private:
  const Json& field(const char* name) const;

  Json fields_;
  std::string place_;
};

// The whole text of a file, unpacked if its name ends in .gz. Errors: not there, damaged, more than a gigabyte.
std::string read_text(const std::string& path);
// One object a line; empty lines count for nothing.
std::vector<Record> read_json_lines(const std::string& path);
// Rows of fields as in RFC 4180: quotes around a field, twice inside it; every row has as many fields as the first.
std::vector<std::vector<std::string>> read_csv(const std::string& path);
// The same with a first row of names, as records.
std::vector<Record> read_named_csv(const std::string& path);
bool has_extension(const std::string& path, const std::string& extension);  // also before ".gz"

// The first file there is among `names` (without extension, relative to `folder`) with .jsonl, .json, .csv or .txt,
// packed or not; "" for none.
std::string find_file(const std::string& folder, const std::vector<std::string>& names);

}  // namespace moh::eval
