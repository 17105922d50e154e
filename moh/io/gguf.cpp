#include "moh/io/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <unordered_map>
#include <unordered_set>

#include "moh/base/error.h"
#include "moh/io/files.h"
#include "moh/io/name_text.h"
#include "moh/io/shape_bytes.h"
#include "moh/io/weight_files.h"

namespace moh::io {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMagic = "GGUF";
constexpr std::uint64_t kMaxKeyBytes = 65535, kMaxNameBytes = 64;  // the format's own limits
constexpr std::uint32_t kMaxDims = 4;
constexpr std::uint64_t kDefaultAlignment = 32, kMaxAlignment = 1 << 20;

// Types of metadata values, as numbered in the file.
enum class Type : std::uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kText, kList, kU64, kI64, kF64 };
constexpr std::uint32_t kNumTypes = 13;
constexpr std::array<const char*, kNumTypes> kTypeNames = {
    "an integer",    "an integer", "an integer", "an integer", "an integer", "an integer", "a number",
    "true or false", "text",       "a list",     "an integer", "an integer", "a number"};
constexpr std::array<std::uint8_t, kNumTypes> kTypeBytes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};  // 0: not fixed

const char* name_of(Type type) { return kTypeNames[static_cast<std::uint32_t>(type)]; }
bool is_integer(Type type) { return std::string_view(name_of(type)) == "an integer"; }

struct Value {
  Type type = Type::kU8, item = Type::kU8;  // item: of a list
  std::uint64_t count = 1;
  std::span<const std::byte> bytes;  // of a text: its content; of a list: of all items
};

std::uint64_t read_number(const std::byte* at, std::size_t bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < bytes; ++i) value |= std::to_integer<std::uint64_t>(at[i]) << (8 * i);
  return value;
}

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Goes through the bytes from front to back; none is read that is not there.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& prefix) : bytes_(bytes), prefix_(prefix) {}

  std::span<const std::byte> take(std::uint64_t size, const char* what) {
    MOH_CHECK(size <= bytes_.size() - at_, prefix_, what, " needs ", size, " bytes at ", at_, ", but the file ends at ",
              bytes_.size(), "; is it cut short?");
    const auto taken = bytes_.subspan(at_, size);
    at_ += size;
    return taken;
  }
  std::uint32_t u32(const char* what) { return static_cast<std::uint32_t>(read_number(take(4, what).data(), 4)); }
  std::uint64_t u64(const char* what) { return read_number(take(8, what).data(), 8); }
  std::span<const std::byte> text(const char* what, std::uint64_t most = std::numeric_limits<std::uint64_t>::max()) {
    const std::uint64_t size = u64(what);
    MOH_CHECK(size <= most, prefix_, what, " has ", size, " bytes, the format allows ", most);
    return take(size, what);
  }
  std::size_t at() const { return at_; }
  std::span<const std::byte> since(std::size_t start) const { return bytes_.subspan(start, at_ - start); }

 private:
  std::span<const std::byte> bytes_;
  const std::string& prefix_;
  std::size_t at_ = 0;
};

Type read_type(Cursor& cursor, const std::string& prefix, std::string_view key) {
  const std::uint32_t type = cursor.u32("the type of a value");
  MOH_CHECK(type < kNumTypes, prefix, name_text(key), " has the unknown type ", type);
  return static_cast<Type>(type);
}

void skip_items(Cursor& cursor, const std::string& prefix, std::string_view key, Type type, std::uint64_t count) {
  MOH_CHECK(type != Type::kList, prefix, name_text(key), " is a list of lists, which no model has");
  if (type == Type::kText) {  // at least eight bytes each: a count that lies ends at the end of the file
    for (std::uint64_t i = 0; i < count; ++i) cursor.text("a text");
    return;
  }
  const std::uint64_t item_bytes = kTypeBytes[static_cast<std::uint32_t>(type)];
  MOH_CHECK(count <= std::numeric_limits<std::uint64_t>::max() / item_bytes, prefix, name_text(key), " cannot have ",
            count, " items");
  const auto items = cursor.take(count * item_bytes, "a list or value");
  MOH_CHECK(
      type != Type::kBool || std::all_of(items.begin(), items.end(), [](std::byte b) { return b <= std::byte{1}; }),
      prefix, name_text(key), " must be 0 or 1");
}

Value read_value(Cursor& cursor, const std::string& prefix, std::string_view key) {
  Value value;
  value.type = read_type(cursor, prefix, key);
  if (value.type == Type::kText) {
    value.bytes = cursor.text("a text");
    return value;
  }
  if (value.type == Type::kList) {
    value.item = read_type(cursor, prefix, key);
    value.count = cursor.u64("the length of a list");
  }
  const std::size_t start = cursor.at();
  skip_items(cursor, prefix, key, value.type == Type::kList ? value.item : value.type, value.count);
  value.bytes = cursor.since(start);
  return value;
}

std::int64_t integer_of(Type type, const std::byte* at, const std::string& prefix, const std::string& key) {
  const std::size_t bytes = kTypeBytes[static_cast<std::uint32_t>(type)];
  const std::uint64_t value = read_number(at, bytes);
  switch (type) {
    case Type::kI8:
      return static_cast<std::int8_t>(value);
    case Type::kI16:
      return static_cast<std::int16_t>(value);
    case Type::kI32:
      return static_cast<std::int32_t>(value);
    case Type::kU64:
      MOH_CHECK(value <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()), prefix, name_text(key),
                " is too large: ", value);
      [[fallthrough]];
    default:
      return static_cast<std::int64_t>(value);
  }
}

double float_of(Type type, const std::byte* at) {
  return type == Type::kF64 ? std::bit_cast<double>(read_number(at, 8))
                            : std::bit_cast<float>(static_cast<std::uint32_t>(read_number(at, 4)));
}

struct Entry {
  GgufTensor tensor;
  std::uint64_t offset = 0, size = 0;
};

Entry read_entry(Cursor& cursor, const std::string& prefix) {
  Entry entry;
  GgufTensor& tensor = entry.tensor;
  tensor.name = as_text(cursor.text("the name of a tensor", kMaxNameBytes));
  const std::string name = "tensor " + name_text(tensor.name);
  const std::uint32_t dims = cursor.u32("a tensor's number of dimensions");
  MOH_CHECK(dims >= 1 && dims <= kMaxDims, prefix, name, " has ", dims, " dimensions, expected 1 to ", kMaxDims);
  for (std::uint32_t i = 0; i < dims; ++i) {
    const std::uint64_t size = cursor.u64("a tensor's shape");
    MOH_CHECK(size <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()), prefix, name,
              " has too many elements");
    tensor.shape.insert(tensor.shape.begin(), static_cast<std::int64_t>(size));
  }
  const std::uint32_t type = cursor.u32("a tensor's type");
  tensor.type = find_block_type(type);
  MOH_CHECK(tensor.type != nullptr, prefix, name, " has the unknown type ", type,
            "; the file may be of a newer llama.cpp");
  entry.offset = cursor.u64("a tensor's offset");

  const auto elements = shape_bytes(tensor.shape, 1);
  const std::int64_t row = tensor.shape.back();
  MOH_CHECK(elements, prefix, name, " has too many elements");
  MOH_CHECK(row % tensor.type->values == 0, prefix, name, " of type ", tensor.type->name, " has rows of ", row,
            ", which blocks of ", tensor.type->values, " do not fill");
  const std::uint64_t blocks = *elements / tensor.type->values;
  MOH_CHECK(blocks <= std::numeric_limits<std::int64_t>::max() / static_cast<std::uint64_t>(tensor.type->bytes), prefix,
            name, " has too many elements");
  entry.size = blocks * tensor.type->bytes;
  return entry;
}

// In the order of their offsets, each tensor begins where the one before ends, rounded up to the alignment.
void check_layout(std::vector<Entry>& entries, std::uint64_t data_size, std::uint64_t alignment,
                  const std::string& prefix) {
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.offset, a.size) < std::pair(b.offset, b.size);
  });
  std::uint64_t reached = 0, end = 0;
  for (const Entry& entry : entries) {
    const std::string name = "tensor " + name_text(entry.tensor.name);
    MOH_CHECK(entry.offset % alignment == 0, prefix, name, " begins at ", entry.offset,
              ", which is no multiple of the alignment of ", alignment);
    MOH_CHECK(entry.offset >= reached, prefix, name, " overlaps another one at byte ", entry.offset, " of the data");
    MOH_CHECK(entry.offset == reached, prefix, name, " leaves a hole: bytes ", reached, " to ", entry.offset,
              " of the data are unused");
    MOH_CHECK(entry.offset <= data_size && entry.size <= data_size - entry.offset, prefix, name, " of ", entry.size,
              " bytes at ", entry.offset, " ends beyond the data's ", data_size, " bytes; is the file cut short?");
    end = entry.offset + entry.size;
    reached = (end + alignment - 1) / alignment * alignment;  // cannot overflow: end is inside the file
  }
  MOH_CHECK(data_size <= reached, prefix, data_size - reached, " bytes at the end belong to no tensor");
}

}  // namespace

struct GgufFile::Impl {
  std::string path;
  std::string prefix;
  std::optional<MappedFile> mapping;
  std::map<std::string, Value> values;
  std::vector<GgufTensor> tensors;
  std::unordered_map<std::string_view, std::size_t> index;  // views of the names in `tensors`

  void read(std::span<const std::byte> file) {
    prefix = "[gguf] " + path + ": ";
    refuse_stand_in(file, prefix);
    Cursor cursor(file, prefix);
    MOH_CHECK(file.size() >= 4 && as_text(cursor.take(4, "the beginning")) == kMagic, prefix,
              "not a GGUF file, which begins with the letters GGUF");
    const std::uint32_t version = cursor.u32("the version");
    MOH_CHECK(version == 2 || version == 3, prefix,
              version != 0 && (version & 0xffff) == 0 ? "written for big-endian machines, which is not read"
                                                      : "of version " + std::to_string(version) + "; read are 2 and 3",
              "; convert it again with a newer llama.cpp");
    const std::uint64_t num_tensors = cursor.u64("the number of tensors"),
                        num_values = cursor.u64("the number of keys");
    for (std::uint64_t i = 0; i < num_values; ++i) {
      std::string key(as_text(cursor.text("a key", kMaxKeyBytes)));
      const Value value = read_value(cursor, prefix, key);
      const bool is_new = values.emplace(key, value).second;
      MOH_CHECK(is_new, prefix, "the key ", name_text(key), " comes twice");
    }
    std::vector<Entry> entries;
    std::unordered_set<std::string> names;
    for (std::uint64_t i = 0; i < num_tensors; ++i) {
      entries.push_back(read_entry(cursor, prefix));
      MOH_CHECK(names.insert(entries.back().tensor.name).second, prefix, "two tensors are named ",
                name_text(entries.back().tensor.name));
    }
    std::uint64_t alignment = kDefaultAlignment;
    if (const auto found = values.find("general.alignment"); found != values.end()) {
      MOH_CHECK(found->second.type == Type::kU32, prefix, "\"general.alignment\" must be an integer of 32 bits");
      alignment = read_number(found->second.bytes.data(), 4);
      MOH_CHECK(alignment >= 8 && alignment <= kMaxAlignment && std::has_single_bit(alignment), prefix,
                "\"general.alignment\" must be a power of two from 8 to ", kMaxAlignment, ", got ", alignment);
    }
    std::span<const std::byte> data;
    if (num_tensors > 0) {
      cursor.take((alignment - cursor.at() % alignment) % alignment, "the padding before the data");
      data = file.subspan(cursor.at());
    } else {  // metadata alone, with or without padding
      MOH_CHECK(file.size() - cursor.at() < alignment, prefix, file.size() - cursor.at(),
                " bytes at the end belong to no tensor");
    }
    check_layout(entries, data.size(), alignment, prefix);
    tensors.reserve(entries.size());
    for (Entry& entry : entries) {
      entry.tensor.bytes = data.subspan(entry.offset, entry.size);
      tensors.push_back(std::move(entry.tensor));
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) index.emplace(tensors[i].name, i);
  }

  const Value* find(const std::string& key) const {
    const auto found = values.find(key);
    return found == values.end() ? nullptr : &found->second;
  }
  [[noreturn]] void wrong_type(const std::string& key, const Value& value, const char* wanted) const {
    fail(prefix, name_text(key), " must be ", wanted, ", got ", name_of(value.type),
         value.type == Type::kList ? std::string(" with items of type ") + name_of(value.item) : "");
  }
  double number_of(const std::string& key, Type type, const std::byte* at) const {
    return is_integer(type) ? static_cast<double>(integer_of(type, at, prefix, key)) : float_of(type, at);
  }
};

GgufFile::GgufFile(const std::string& path) : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  impl_->mapping.emplace(path);
  impl_->read(impl_->mapping->bytes());
}

GgufFile::GgufFile(std::span<const std::byte> memory, const std::string& label) : impl_(std::make_unique<Impl>()) {
  impl_->path = label;
  impl_->read(memory);
}

GgufFile::~GgufFile() = default;
GgufFile::GgufFile(GgufFile&&) noexcept = default;
GgufFile& GgufFile::operator=(GgufFile&&) noexcept = default;

const std::string& GgufFile::path() const { return impl_->path; }
const std::vector<GgufTensor>& GgufFile::tensors() const { return impl_->tensors; }

const GgufTensor* GgufFile::find(const std::string& name) const {
  const auto found = impl_->index.find(name);
  return found == impl_->index.end() ? nullptr : &impl_->tensors[found->second];
}

bool GgufFile::has(const std::string& key) const { return impl_->find(key) != nullptr; }

bool GgufFile::is_list(const std::string& key) const {
  const Value* value = impl_->find(key);
  return value != nullptr && value->type == Type::kList;
}

std::vector<std::string> GgufFile::keys() const {
  std::vector<std::string> names;
  for (const auto& [key, value] : impl_->values) names.push_back(key);
  return names;
}

std::optional<std::string_view> GgufFile::text(const std::string& key) const {
  const Value* value = impl_->find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != Type::kText) impl_->wrong_type(key, *value, "text");
  return as_text(value->bytes);
}

std::optional<std::int64_t> GgufFile::integer(const std::string& key) const {
  const Value* value = impl_->find(key);
  if (value == nullptr) return std::nullopt;
  if (!is_integer(value->type)) impl_->wrong_type(key, *value, "an integer");
  return integer_of(value->type, value->bytes.data(), impl_->prefix, key);
}

std::optional<double> GgufFile::number(const std::string& key) const {
  const Value* value = impl_->find(key);
  if (value == nullptr) return std::nullopt;
  if (kTypeBytes[static_cast<std::uint32_t>(value->type)] == 0 || value->type == Type::kBool) {
    impl_->wrong_type(key, *value, "a number");
  }
  return impl_->number_of(key, value->type, value->bytes.data());
}

std::optional<bool> GgufFile::flag(const std::string& key) const {
  const Value* value = impl_->find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != Type::kBool) impl_->wrong_type(key, *value, "true or false");
  return value->bytes[0] != std::byte{0};
}

std::vector<std::string_view> GgufFile::texts(const std::string& key) const {
  const Value* value = impl_->find(key);
  if (value == nullptr) return {};
  if (value->type != Type::kList || value->item != Type::kText) impl_->wrong_type(key, *value, "a list of texts");
  std::vector<std::string_view> items;
  items.reserve(value->count);  // each has eight bytes of the file at least
  Cursor cursor(value->bytes, impl_->prefix);
  for (std::uint64_t i = 0; i < value->count; ++i) items.push_back(as_text(cursor.text("a text")));
  return items;
}

std::vector<std::int64_t> GgufFile::integers(const std::string& key) const {
  const Value* value = impl_->find(key);
  if (value == nullptr) return {};
  if (value->type != Type::kList || !is_integer(value->item)) impl_->wrong_type(key, *value, "a list of integers");
  std::vector<std::int64_t> items(value->count);
  const std::size_t bytes = kTypeBytes[static_cast<std::uint32_t>(value->item)];
  for (std::size_t i = 0; i < items.size(); ++i) {
    items[i] = integer_of(value->item, value->bytes.data() + i * bytes, impl_->prefix, key);
  }
  return items;
}

std::vector<double> GgufFile::numbers(const std::string& key) const {
  const Value* value = impl_->find(key);
  if (value == nullptr) return {};
  const std::size_t bytes = kTypeBytes[static_cast<std::uint32_t>(value->item)];
  if (value->type != Type::kList || bytes == 0 || value->item == Type::kBool) {
    impl_->wrong_type(key, *value, "a list of numbers");
  }
  std::vector<double> items(value->count);
  for (std::size_t i = 0; i < items.size(); ++i) {
    items[i] = impl_->number_of(key, value->item, value->bytes.data() + i * bytes);
  }
  return items;
}

bool is_gguf_file(const std::string& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return false;
  std::ifstream file(path, std::ios::binary);
  std::array<char, 4> start{};
  file.read(start.data(), start.size());
  return file.gcount() == 4 && std::string_view(start.data(), 4) == kMagic;
}

namespace {

// "-00001-of-00003.gguf" at the end of a name: 1 and 3.
struct Part {
  std::size_t stem = 0;  // length of what stands before
  int number = 1, count = 1;
};
Part part_of(const std::string& name) {
  constexpr std::string_view kForm = "-00001-of-00003.gguf";
  if (name.size() < kForm.size()) return {};
  const std::size_t stem = name.size() - kForm.size();
  const std::string_view end = std::string_view(name).substr(stem);
  for (std::size_t i = 0; i < kForm.size(); ++i) {
    const bool is_digit = end[i] >= '0' && end[i] <= '9';
    if (kForm[i] >= '0' && kForm[i] <= '9' ? !is_digit : end[i] != kForm[i]) return {};
  }
  return {stem, std::stoi(std::string(end.substr(1, 5))), std::stoi(std::string(end.substr(10, 5)))};
}

// A folder with weights that are read before a GGUF file beside them.
bool has_other_weights(const fs::path& folder) {
  std::error_code error;
  for (const char* name :
       {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (fs::exists(folder / name, error)) return true;
  }
  return false;
}

}  // namespace

std::optional<std::string> find_gguf(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return is_gguf_file(path) ? std::optional(path) : std::nullopt;
  if (has_other_weights(path)) return std::nullopt;
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with('.') || !name.ends_with(".gguf") || part_of(name).number > 1) continue;
    found.push_back(entry.path().string());
  }
  if (found.empty()) return std::nullopt;
  std::sort(found.begin(), found.end());
  std::string names;
  for (const std::string& file : found) names += (names.empty() ? "" : ", ") + fs::path(file).filename().string();
  MOH_CHECK(found.size() == 1, "[gguf] ", path, " holds several models (", one_line(names.substr(0, 300)),
            "); name the file instead of the folder");
  return found.front();
}

std::vector<std::string> gguf_parts(const std::string& first) {
  const Part part = part_of(first);
  if (part.stem == 0 || part.count <= 1) return {first};
  MOH_CHECK(part.number == 1, "[gguf] ", first, " is part ", part.number, " of ", part.count,
            " of a model; name the first part");
  std::vector<std::string> files;
  for (int i = 1; i <= part.count; ++i) {
    std::string number = std::to_string(i), count = std::to_string(part.count);
    number.insert(0, 5 - number.size(), '0');
    count.insert(0, 5 - count.size(), '0');
    files.push_back(first.substr(0, part.stem) + "-" + number + "-of-" + count + ".gguf");
    MOH_CHECK(fs::exists(files.back()), "[gguf] ", files.back(), " is missing: part ", i, " of ", part.count,
              " of the model");
  }
  return files;
}

}  // namespace moh::io
