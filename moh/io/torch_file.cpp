#include "moh/io/torch_file.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <unordered_map>
#include <unordered_set>

#include "moh/base/error.h"
#include "moh/io/files.h"
#include "moh/io/name_text.h"
#include "moh/io/weight_files.h"
#include "moh/io/wrapper_names.h"
#include "moh/io/zip_archive.h"

namespace moh::io {
namespace {

constexpr std::size_t kMaxPickle = 32 << 20;  // a checkpoint of 100,000 tensors has about 20 MB
constexpr const char* kSaveAgain =
    "load it in Python with torch.load(FILE, weights_only=True) and write it again with torch.save";

// torch.save before 1.6: the pickled number 0x1950a86a20f9469cfc6c, in protocol 2, begins the file.
constexpr std::array<unsigned char, 14> kLegacyStart = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c,
                                                        0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};

bool is_legacy(std::span<const std::byte> file) {
  return file.size() >= kLegacyStart.size() &&
         std::equal(kLegacyStart.begin(), kLegacyStart.end(), file.begin(),
                    [](unsigned char a, std::byte b) { return std::byte{a} == b; });
}

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

struct TorchFile::Impl {
  std::string path;
  std::optional<MappedFile> mapping;
  std::optional<Pickle> pickle;

  void read(std::span<const std::byte> file) {
    const std::string prefix = "[torch file] " + path + ": ";
    refuse_stand_in(file, prefix);
    MOH_CHECK(!is_legacy(file), prefix, "the format of torch before 1.6 is not read; ", kSaveAgain);
    MOH_CHECK(is_zip(file), prefix, "not a file of torch.save, which begins as a zip archive does");
    const std::vector<ZipEntry> entries = read_zip(file, path);
    // Every name begins with the same folder, usually `archive`.
    const ZipEntry* data = nullptr;
    for (const ZipEntry& entry : entries) {
      if (entry.name.ends_with("/data.pkl") && entry.name.find('/') == entry.name.size() - 9) data = &entry;
    }
    MOH_CHECK(data != nullptr, prefix, "the archive has no data.pkl; ", kSaveAgain);
    const std::string folder = data->name.substr(0, data->name.find('/') + 1);
    std::unordered_map<std::string_view, const ZipEntry*> by_name;
    for (const ZipEntry& entry : entries) by_name.emplace(entry.name, &entry);
    MOH_CHECK(!by_name.contains(folder + "constants.pkl"), prefix,
              "a TorchScript archive holds a program, which is not run; save the state_dict with torch.save");
    if (const auto order = by_name.find(folder + "byteorder"); order != by_name.end()) {
      MOH_CHECK(text_of(order->second->bytes) == "little", prefix, "written on a big-endian machine; ", kSaveAgain);
    }
    const auto plain = [&](const ZipEntry& entry) {
      MOH_CHECK(!entry.packed, prefix, name_text(entry.name),
                " is compressed or encrypted, which torch.save never does; ", kSaveAgain);
      return entry.bytes;
    };
    plain(*data);
    MOH_CHECK(data->bytes.size() <= kMaxPickle, prefix, "data.pkl has ", data->bytes.size(), " bytes, at most ",
              kMaxPickle, " are read");
    pickle.emplace(data->bytes, path, [&](const std::string& key) {
      const auto found = by_name.find(folder + "data/" + key);
      MOH_CHECK(found != by_name.end(), prefix, "the archive lacks the storage ", name_text(key));
      return plain(*found->second);
    });
  }
};

TorchFile::TorchFile(const std::string& path) : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  impl_->mapping.emplace(path);
  impl_->read(impl_->mapping->bytes());
}

TorchFile::TorchFile(std::span<const std::byte> memory, const std::string& label) : impl_(std::make_unique<Impl>()) {
  impl_->path = label;
  impl_->read(memory);
}

TorchFile::~TorchFile() = default;
TorchFile::TorchFile(TorchFile&&) noexcept = default;
TorchFile& TorchFile::operator=(TorchFile&&) noexcept = default;

const std::string& TorchFile::path() const { return impl_->path; }
const PickleValue& TorchFile::root() const { return impl_->pickle->root(); }

std::optional<std::string> TorchFile::first_key(const std::vector<std::string>& keys) const {
  for (const std::string& key : keys) {
    const PickleValue* value = root().find(key);
    if (value != nullptr && value->is(PickleValue::Kind::kDict)) return key;
  }
  return std::nullopt;
}

std::vector<TorchFile::Named> TorchFile::tensors(const std::vector<std::string>& keys) const {
  const std::string prefix = "[torch file] " + path() + ": ";
  const auto key = first_key(keys);
  const PickleValue& dict = key ? *root().find(*key) : root();
  MOH_CHECK(dict.is(PickleValue::Kind::kDict), prefix, "expected a dictionary of tensors, got ", kind_name(dict));
  std::vector<Named> found;
  std::unordered_map<std::string_view, std::size_t> place;  // a name that comes again replaces the one before
  for (std::size_t i = 0; i + 1 < dict.items.size(); i += 2) {
    const PickleValue &name = *dict.items[i], &value = *dict.items[i + 1];
    MOH_CHECK(name.is(PickleValue::Kind::kText), prefix, "a tensor's name must be text, got ", kind_name(name));
    if (!key && !value.is(PickleValue::Kind::kTensor)) {
      std::string wanted;
      for (const std::string& option : keys) wanted += (wanted.empty() ? "`" : ", `") + option + "`";
      fail(prefix, "neither a dictionary of tensors", wanted.empty() ? "" : " nor one with ", wanted, ": ",
           name_text(name.text), " is ", kind_name(value));
    }
    MOH_CHECK(value.is(PickleValue::Kind::kTensor), prefix, name_text(name.text), " must be a tensor, got ",
              kind_name(value));
    const auto [known, is_new] = place.emplace(name.text, found.size());
    if (is_new) {
      found.push_back({name.text, value.tensor.get()});
    } else {
      found[known->second].tensor = value.tensor.get();
    }
  }
  MOH_CHECK(!found.empty(), prefix, "no tensors", key ? " under `" + *key + "`" : "");
  std::vector<std::string> names;
  for (const Named& item : found) names.push_back(item.name);
  strip_wrappers(names);
  std::unordered_set<std::string_view> known;
  for (std::size_t i = 0; i < found.size(); ++i) {
    MOH_CHECK(known.insert(names[i]).second, prefix, "two tensors are named ", name_text(names[i]),
              " but for what torch.compile and the like put into names");
    found[i].name = names[i];
  }
  return found;
}

bool is_torch_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::array<char, kLegacyStart.size()> start{};
  file.read(start.data(), start.size());
  const auto bytes = std::as_bytes(std::span(start)).first(static_cast<std::size_t>(file.gcount()));
  return is_zip(bytes) || is_legacy(bytes);
}

}  // namespace moh::io
