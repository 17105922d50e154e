#include "moh/data/token_data.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "moh/base/error.h"
#include "moh/base/fields.h"
#include "moh/data/epoch_order.h"
#include "moh/data/text_file.h"
#include "moh/io/folder_walk.h"
#include "moh/io/npy.h"

namespace moh::data {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> text_files(const std::string& path) {
  if (!fs::is_directory(path)) return {path};
  const auto is_text = [](const std::string& name) { return fs::path(name).extension() == ".txt"; };
  const auto found = io::files_in(path, /*deep=*/false, is_text);
  MOH_CHECK(!found.paths.empty(), "[data] folder ", path, " has no .txt file");
  return found.paths;
}

// Of a mapped file, at the start: that it was made for another vocabulary shows there. The rest is not read before it
// is used, and then the model itself refuses ids that it does not have.
constexpr std::int64_t kCheckedFirst = 1 << 16;
constexpr std::int64_t kListed = 1 << 20;  // windows

}  // namespace

TokenStream TokenStream::open(const std::string& path, const text::Tokenizer* tokenizer, std::int64_t vocab_size) {
  MOH_CHECK(fs::exists(path), "[data] ", path, " does not exist");
  TokenStream stream;
  const std::string extension = fs::path(path).extension().string();
  if (fs::exists(path + "/tokens.json")) {
    stream.open_folder(path, vocab_size);
  } else if (!fs::is_directory(path) && (extension == ".npy" || extension == ".bin")) {
    stream.map_ = std::make_shared<io::MappedFile>(path);
    auto bytes = stream.map_->bytes();
    std::string dtype = vocab_size > 65536 ? "u4" : "u2";
    if (extension == ".npy") {
      const io::NpyHeader header = io::read_npy_header(bytes, path);
      MOH_CHECK(header.shape.size() == 1, "[data] ", path, " must have one dimension, got ", header.shape.size());
      MOH_CHECK(header.dtype == "u2" || header.dtype == "u4", "[data] ", path,
                " must hold uint16 or uint32 token ids, got NumPy type ", header.dtype);
      dtype = header.dtype;
      bytes = bytes.subspan(header.data_offset);
    }
    const std::size_t width = dtype == "u2" ? 2 : 4;
    MOH_CHECK(bytes.size() % width == 0, "[data] ", path, " is not a whole number of ", width * 8, "-bit ids");
    stream.size_ = static_cast<std::int64_t>(bytes.size() / width);
    if (reinterpret_cast<std::uintptr_t>(bytes.data()) % width != 0) {  // an .npy header of odd length: rare, copied
      std::vector<std::uint32_t> ids(static_cast<std::size_t>(stream.size_));
      for (std::int64_t i = 0; i < stream.size_; ++i) std::memcpy(&ids[i], bytes.data() + i * width, width);
      stream.own(std::move(ids));
    } else if (width == 2) {
      stream.narrow_ = reinterpret_cast<const std::uint16_t*>(bytes.data());
    } else {
      stream.wide_ = reinterpret_cast<const std::uint32_t*>(bytes.data());
    }
  } else {
    MOH_CHECK(tokenizer != nullptr, "[data] ", path, " is text and needs a tokenizer");
    std::size_t bytes = 0;
    std::vector<std::uint32_t> ids;
    for (const std::string& file : text_files(path)) {
      const std::string text = read_text_file(file);
      bytes += text.size();
      if (tokenizer->adds_bos()) ids.push_back(static_cast<std::uint32_t>(tokenizer->bos_id()));
      for (const std::int64_t id : tokenizer->encode(text)) ids.push_back(static_cast<std::uint32_t>(id));
    }
    MOH_CHECK(bytes > 0, "[data] ", path, " is empty");  // a BOS alone is no data
    stream.own(std::move(ids));
  }
  MOH_CHECK(stream.size_ > 0, "[data] ", path, " is empty");
  const std::int64_t checked = stream.owned_ == nullptr ? std::min(stream.size_, kCheckedFirst) : stream.size_;
  for (std::int64_t i = 0; i < checked; ++i) {
    MOH_CHECK(stream[i] < vocab_size, "[data] ", path, ": token id ", stream[i], " at position ", i,
              " is outside the model's vocabulary of ", vocab_size,
              tokenizer != nullptr ? "" : "; was the file made with another tokenizer?");
  }
  return stream;
}

void TokenStream::own(std::vector<std::uint32_t> ids) {
  owned_ = std::make_shared<const std::vector<std::uint32_t>>(std::move(ids));
  size_ = static_cast<std::int64_t>(owned_->size());
  wide_ = owned_->data();
}

void TokenStream::open_folder(const std::string& path, std::int64_t vocab_size) {
  const std::string file = path + "/tokens.json";
  const Json note = parse_json(io::read_file(file, std::uint64_t{1} << 28), file);
  std::string type;
  std::int64_t count = 0, vocabulary = 0;
  try {
    MOH_CHECK(note.at("done").get<bool>(), "[data] ", path, " is not finished; run the same `moh data tokenize` again");
    note.at("ids").get_to(type);
    note.at("tokens").get_to(size_);
    note.at("documents").get_to(count);
    note.at("vocab_size").get_to(vocabulary);
  } catch (const nlohmann::json::exception& error) {
    fail("[data] ", file, " is damaged: ", error.what());
  }
  MOH_CHECK(type == "uint16" || type == "uint32", "[data] ", file, " is damaged: `ids` is ", type);
  MOH_CHECK(vocabulary <= vocab_size, "[data] ", path, " was made with a vocabulary of ", vocabulary,
            ", the model has ", vocab_size);
  map_ = std::make_shared<io::MappedFile>(path + "/ids.bin");
  documents_map_ = std::make_shared<io::MappedFile>(path + "/documents.bin");
  const std::size_t width = type == "uint16" ? 2 : 4;
  MOH_CHECK(size_ >= 0 && count >= 0 && map_->bytes().size() == static_cast<std::size_t>(size_) * width &&
                documents_map_->bytes().size() == static_cast<std::size_t>(count) * 8,
            "[data] ", path, " is incomplete: ids.bin or documents.bin is not as long as tokens.json says");
  if (width == 2) {
    narrow_ = reinterpret_cast<const std::uint16_t*>(map_->bytes().data());
  } else {
    wide_ = reinterpret_cast<const std::uint32_t*>(map_->bytes().data());
  }
  documents_ = {reinterpret_cast<const std::uint64_t*>(documents_map_->bytes().data()),
                static_cast<std::size_t>(count)};
}

at::Tensor TokenStream::documents(const std::vector<std::int64_t>& starts, std::int64_t length) const {
  at::Tensor numbers = at::empty({static_cast<std::int64_t>(starts.size()), length + 1}, at::TensorOptions(at::kLong));
  std::int64_t* out = numbers.mutable_data_ptr<std::int64_t>();
  for (const std::int64_t start : starts) {
    auto next = std::upper_bound(documents_.begin(), documents_.end(), static_cast<std::uint64_t>(start));
    std::int64_t number = 0;
    for (std::int64_t i = start; i <= start + length; ++i) {
      for (; next != documents_.end() && *next <= static_cast<std::uint64_t>(i); ++next) ++number;
      *out++ = number;
    }
  }
  return numbers;
}

at::Tensor TokenStream::windows(const std::vector<std::int64_t>& starts, std::int64_t length) const {
  const auto count = static_cast<std::int64_t>(starts.size());
  at::Tensor ids = at::empty({count, length + 1}, at::TensorOptions(at::kLong));
  std::int64_t* out = ids.mutable_data_ptr<std::int64_t>();
  for (const std::int64_t start : starts) {
    MOH_CHECK(start >= 0 && start + length < size_, "[data] window ", start, " + ", length, " leaves the stream of ",
              size_, " tokens");
    for (std::int64_t i = 0; i <= length; ++i) *out++ = (*this)[start + i];
  }
  return ids;
}

WindowSampler::WindowSampler(std::int64_t stream_size, std::int64_t sequence, std::uint64_t seed)
    : stream_size_(stream_size), sequence_(sequence), per_epoch_((stream_size - 1) / sequence), seed_(seed) {
  MOH_CHECK(sequence > 0, "[data] sequence must be positive, got ", sequence);
  MOH_CHECK(per_epoch_ > 0, "[data] ", stream_size, " tokens are too few for a sequence of ", sequence,
            "; give more data or a shorter --sequence");
}

void WindowSampler::shuffle(std::int64_t epoch) {
  std::mt19937_64 random = epoch_generator(seed_, epoch);
  if (per_epoch_ <= kListed) {
    order_ = shuffled<std::int64_t>(per_epoch_, random);
  } else {
    permutation_.emplace(static_cast<std::uint64_t>(per_epoch_), seed_, static_cast<std::uint64_t>(epoch));
  }
  const std::int64_t slack = stream_size_ - 1 - per_epoch_ * sequence_;  // tokens that no window would reach
  offset_ = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(slack + 1));
  epoch_ = epoch;
}

std::vector<std::int64_t> WindowSampler::starts(std::int64_t position, std::int64_t count) {
  std::vector<std::int64_t> result;
  for (std::int64_t i = position; i < position + count; ++i) {
    if (i / per_epoch_ != epoch_) shuffle(i / per_epoch_);
    const std::int64_t place = i % per_epoch_;
    const std::int64_t window =
        permutation_ ? static_cast<std::int64_t>((*permutation_)(static_cast<std::uint64_t>(place))) : order_[place];
    result.push_back(offset_ + window * sequence_);
  }
  return result;
}

}  // namespace moh::data
