// Safetensors reading and writing. The header is read value by value into the tensor list, without a JSON tree: memory
// and time stay proportional to the header, whatever it claims.
#include "moh/io/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "moh/base/activity.h"
#include "moh/base/fields.h"
#include "moh/io/files.h"
#include "moh/io/name_text.h"
#include "moh/io/shape_bytes.h"
#include "moh/io/weight_files.h"

namespace moh::io {
namespace {

constexpr std::uint64_t kMaxHeader = 100'000'000;  // the reference implementation's limit
constexpr std::size_t kPrefixBytes = 8;
constexpr std::string_view kMetadataKey = "__metadata__";

constexpr std::array<std::pair<std::string_view, int>, 15> kDtypes = {{{"F64", 8},
                                                                       {"F32", 4},
                                                                       {"F16", 2},
                                                                       {"BF16", 2},
                                                                       {"I64", 8},
                                                                       {"I32", 4},
                                                                       {"I16", 2},
                                                                       {"I8", 1},
                                                                       {"U64", 8},
                                                                       {"U32", 4},
                                                                       {"U16", 2},
                                                                       {"U8", 1},
                                                                       {"BOOL", 1},
                                                                       {"F8_E4M3", 1},
                                                                       {"F8_E5M2", 1}}};

std::string start_of_error(const std::string& label) { return "[safetensors] " + label + ": "; }

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i == 8) return text + ", ...]";
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

struct Entry {
  TensorView view;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

// Follows the header {name: {dtype, shape, data_offsets}, __metadata__: {key: text}} and refuses anything else.
class HeaderSax : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderSax(const std::string& label) : label_(label) {}

  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;

  bool null() override { refuse("null"); }
  bool boolean(bool) override { refuse("a boolean"); }
  bool number_integer(std::int64_t) override { refuse("a negative number"); }
  bool number_float(double, const std::string&) override { refuse("a fraction or too large a number"); }
  bool binary(Json::binary_t&) override { refuse("binary data"); }

  bool number_unsigned(std::uint64_t value) override {
    if (place_ == Place::kShape && value <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      entry_.view.shape.push_back(static_cast<std::int64_t>(value));
    } else if (place_ == Place::kOffsets && num_offsets_ < 2) {
      (num_offsets_++ == 0 ? entry_.begin : entry_.end) = value;
    } else {
      refuse(place_ == Place::kShape     ? "too large a number"
             : place_ == Place::kOffsets ? "a third number"
                                         : "a number");
    }
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::kMetadata) {
      metadata[key_] = std::move(value);
    } else if (place_ == Place::kEntry && key_ == "dtype") {
      MOH_CHECK(dtype_bytes(value) != 0, start_of_error(label_), "tensor ", name_text(entry_.view.name),
                " has the unknown dtype ", name_text(value));
      entry_.view.dtype = std::move(value);
    } else {
      refuse("a string");
    }
    return true;
  }

  bool key(std::string& name) override {
    key_ = std::move(name);
    if (place_ == Place::kTop) {
      entry_ = {};
      entry_.view.name = key_;
      num_offsets_ = 0;
      has_shape_ = false;
    } else if (place_ == Place::kEntry) {
      MOH_CHECK(key_ == "dtype" || key_ == "shape" || key_ == "data_offsets", start_of_error(label_), "tensor ",
                name_text(entry_.view.name), " has the unknown field ", name_text(key_));
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::kStart) {
      place_ = Place::kTop;
    } else if (place_ == Place::kTop) {
      place_ = key_ == kMetadataKey ? Place::kMetadata : Place::kEntry;
    } else {
      refuse("an object");
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kEntry) {
      const char* missing = entry_.view.dtype.empty() ? "dtype"
                            : !has_shape_             ? "shape"
                            : num_offsets_ == 0       ? "data_offsets"
                                                      : nullptr;
      MOH_CHECK(missing == nullptr, start_of_error(label_), "tensor ", name_text(entry_.view.name), " lacks ", missing);
      entries.push_back(std::move(entry_));
    }
    place_ = Place::kTop;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::kEntry && key_ == "shape") {
      place_ = Place::kShape;
      has_shape_ = true;
    } else if (place_ == Place::kEntry && key_ == "data_offsets") {
      place_ = Place::kOffsets;
    } else {
      refuse("an array");
    }
    return true;
  }

  bool end_array() override {
    MOH_CHECK(place_ != Place::kOffsets || num_offsets_ == 2, start_of_error(label_), "tensor ",
              name_text(entry_.view.name), ": data_offsets must be two numbers, got ", num_offsets_);
    place_ = Place::kEntry;
    return true;
  }

  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception&) override { return false; }

 private:
  enum class Place { kStart, kTop, kMetadata, kEntry, kShape, kOffsets };

  [[noreturn]] void refuse(const char* got) const {
    switch (place_) {
      case Place::kStart:
        fail(start_of_error(label_), "the header must be an object, got ", got);
      case Place::kTop:
        fail(start_of_error(label_), name_text(key_), " must be an object, got ", got);
      case Place::kMetadata:
        fail(start_of_error(label_), "metadata ", name_text(key_), " must be a string, got ", got);
      default:
        fail(start_of_error(label_), "tensor ", name_text(entry_.view.name), ": ", key_, " cannot hold ", got,
             key_ == "dtype" ? ", expected a name" : ", expected a list of non-negative integers");
    }
  }

  const std::string& label_;
  Place place_ = Place::kStart;
  std::string key_;
  Entry entry_;
  int num_offsets_ = 0;
  bool has_shape_ = false;
};

// Each tensor has the bytes of its shape, and together they cover the data without holes or overlaps.
void check_layout(std::vector<Entry>& entries, std::uint64_t data_size, const std::string& label) {
  const auto complain = [&](const Entry& entry, const auto&... what) {
    fail(start_of_error(label), "tensor ", name_text(entry.view.name), " ", what...);
  };
  for (const Entry& entry : entries) {
    const auto& [view, begin, end] = entry;
    if (begin > end) complain(entry, "ends before it begins: [", begin, ", ", end, "]");
    if (end > data_size) {
      complain(entry, "ends at byte ", end, " of the data, but there are ", data_size, "; is the file cut short?");
    }
    const auto bytes = shape_bytes(view.shape, dtype_bytes(view.dtype));
    if (!bytes) complain(entry, "of shape ", shape_text(view.shape), " has too many elements");
    if (*bytes != end - begin) {
      complain(entry, "of shape ", shape_text(view.shape), " and dtype ", view.dtype, " needs ", *bytes,
               " bytes, but its offsets span ", end - begin);
    }
  }
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t reached = 0;
  for (const Entry& entry : entries) {
    if (entry.begin > reached) complain(entry, "leaves a hole: bytes ", reached, " to ", entry.begin, " are unused");
    if (entry.begin < reached) complain(entry, "overlaps another one at byte ", entry.begin);
    reached = entry.end;
  }
  MOH_CHECK(reached == data_size, start_of_error(label), data_size - reached, " bytes at the end belong to no tensor");
}

std::uint64_t read_length(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < kPrefixBytes; ++i) value |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  return value;
}

}  // namespace

int dtype_bytes(const std::string& dtype) {
  for (const auto& [name, bytes] : kDtypes)
    if (name == dtype) return bytes;
  return 0;
}

struct SafetensorsFile::Impl {
  std::string path;
  std::optional<MappedFile> mapping;
  std::vector<TensorView> tensors;
  std::unordered_map<std::string_view, std::size_t> index;  // views of the names in `tensors`
  std::map<std::string, std::string> metadata;

  void read(std::span<const std::byte> file) {
    const std::string prefix = start_of_error(path);
    refuse_stand_in(file, prefix);
    MOH_CHECK(file.size() >= kPrefixBytes, prefix, "expected at least 8 bytes of header length, got ", file.size());
    const std::uint64_t length = read_length(file);
    MOH_CHECK(length <= kMaxHeader, prefix, "header length ", length, " is above the limit of ", kMaxHeader,
              "; is this a safetensors file?");
    MOH_CHECK(length <= file.size() - kPrefixBytes, prefix, "header length ", length, " is beyond the file's ",
              file.size(), " bytes; is the file cut short?");
    const std::string_view header(reinterpret_cast<const char*>(file.data()) + kPrefixBytes, length);
    MOH_CHECK(header.starts_with('{'), prefix, "the header must begin with '{'");

    HeaderSax sax(path);
    scan_json(header, prefix + "header: ", 4, sax);
    const auto data = file.subspan(kPrefixBytes + length);
    check_layout(sax.entries, data.size(), path);
    metadata = std::move(sax.metadata);
    tensors.reserve(sax.entries.size());
    for (Entry& entry : sax.entries) {
      entry.view.bytes = data.subspan(entry.begin, entry.end - entry.begin);
      tensors.push_back(std::move(entry.view));
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) index.emplace(tensors[i].name, i);
  }
};

SafetensorsFile::SafetensorsFile(const std::string& path) : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  impl_->mapping.emplace(path);
  impl_->read(impl_->mapping->bytes());
}

SafetensorsFile::SafetensorsFile(std::span<const std::byte> memory, const std::string& label)
    : impl_(std::make_unique<Impl>()) {
  impl_->path = label;
  impl_->read(memory);
}

SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

const std::string& SafetensorsFile::path() const { return impl_->path; }
const std::vector<TensorView>& SafetensorsFile::tensors() const { return impl_->tensors; }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return impl_->metadata; }

const TensorView* SafetensorsFile::find(const std::string& name) const {
  const auto found = impl_->index.find(name);
  return found == impl_->index.end() ? nullptr : &impl_->tensors[found->second];
}

void write_safetensors(const std::string& path, const std::vector<TensorView>& tensors,
                       std::map<std::string, std::string> metadata) {
  const std::string prefix = start_of_error(path);
  metadata.try_emplace("format", "pt");
  std::string header;
  try {
    header += '{';  // piece by piece: GCC 12 warns of "{" + std::string
    header += Json(kMetadataKey).dump() + ":" + Json(metadata).dump();
    std::set<std::string_view> names;
    std::uint64_t offset = 0;
    for (const TensorView& tensor : tensors) {
      const int element_bytes = dtype_bytes(tensor.dtype);
      MOH_CHECK(tensor.name != kMetadataKey, prefix, "a tensor cannot be named ", kMetadataKey);
      MOH_CHECK(names.insert(tensor.name).second, prefix, "two tensors are named ", name_text(tensor.name));
      MOH_CHECK(element_bytes != 0, prefix, "tensor ", name_text(tensor.name), " has the unknown dtype ",
                name_text(tensor.dtype));
      const auto bytes = shape_bytes(tensor.shape, element_bytes);
      MOH_CHECK(bytes && *bytes == tensor.bytes.size(), prefix, "tensor ", name_text(tensor.name), " of shape ",
                shape_text(tensor.shape), " and dtype ", tensor.dtype, " cannot have ", tensor.bytes.size(), " bytes");
      const Json entry = {
          {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + *bytes}}};
      header += ',';
      header += Json(tensor.name).dump() + ":" + entry.dump();
      offset += *bytes;
    }
  } catch (const nlohmann::json::exception&) {
    fail(prefix, "names and metadata must be valid UTF-8");
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');  // the data starts 8-aligned, for readers that map the file
  MOH_CHECK(header.size() <= kMaxHeader, prefix, "the header would have ", header.size(), " bytes, the limit is ",
            kMaxHeader);

  std::array<std::byte, kPrefixBytes> length;
  for (std::size_t i = 0; i < kPrefixBytes; ++i) length[i] = static_cast<std::byte>(header.size() >> (8 * i));
  write_file(path, [&](const Sink& write) {
    write(length);
    write(std::as_bytes(std::span(header)));
    constexpr std::size_t kPiece = std::size_t{64} << 20;
    double done = 0, all = 0;
    for (const TensorView& tensor : tensors) all += static_cast<double>(tensor.bytes.size());
    for (const TensorView& tensor : tensors) {
      for (auto left = tensor.bytes; !left.empty(); left = left.subspan(std::min(kPiece, left.size()))) {
        const auto piece = left.first(std::min(kPiece, left.size()));
        write(piece);
        done += static_cast<double>(piece.size());
        report_activity({"writing", done, all, "bytes"});
      }
    }
  });
}

}  // namespace moh::io
