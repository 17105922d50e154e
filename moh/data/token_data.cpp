#include "moh/data/token_data.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "moh/base/error.h"
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

}  // namespace

TokenStream TokenStream::open(const std::string& path, const text::Tokenizer* tokenizer, std::int64_t vocab_size) {
  MOH_CHECK(fs::exists(path), "[data] ", path, " does not exist");
  TokenStream stream;
  const std::string extension = fs::path(path).extension().string();
  if (!fs::is_directory(path) && (extension == ".npy" || extension == ".bin")) {
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
      stream.owned_.resize(stream.size_);
      for (std::int64_t i = 0; i < stream.size_; ++i) {
        std::memcpy(&stream.owned_[i], bytes.data() + i * width, width);
      }
      stream.wide_ = stream.owned_.data();
    } else if (width == 2) {
      stream.narrow_ = reinterpret_cast<const std::uint16_t*>(bytes.data());
    } else {
      stream.wide_ = reinterpret_cast<const std::uint32_t*>(bytes.data());
    }
  } else {
    MOH_CHECK(tokenizer != nullptr, "[data] ", path, " is text and needs a tokenizer");
    std::size_t bytes = 0;
    for (const std::string& file : text_files(path)) {
      const std::string text = read_text_file(file);
      bytes += text.size();
      if (tokenizer->adds_bos()) stream.owned_.push_back(static_cast<std::uint32_t>(tokenizer->bos_id()));
      for (const std::int64_t id : tokenizer->encode(text)) {
        stream.owned_.push_back(static_cast<std::uint32_t>(id));
      }
    }
    MOH_CHECK(bytes > 0, "[data] ", path, " is empty");  // a BOS alone is no data
    stream.size_ = static_cast<std::int64_t>(stream.owned_.size());
    stream.wide_ = stream.owned_.data();
  }
  MOH_CHECK(stream.size_ > 0, "[data] ", path, " is empty");
  const std::int64_t checked = stream.owned_.empty() ? std::min(stream.size_, kCheckedFirst) : stream.size_;
  for (std::int64_t i = 0; i < checked; ++i) {
    MOH_CHECK(stream[i] < vocab_size, "[data] ", path, ": token id ", stream[i], " at position ", i,
              " is outside the model's vocabulary of ", vocab_size,
              tokenizer != nullptr ? "" : "; was the file made with another tokenizer?");
  }
  return stream;
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
  order_ = shuffled<std::int64_t>(per_epoch_, random);
  const std::int64_t slack = stream_size_ - 1 - per_epoch_ * sequence_;  // tokens that no window would reach
  offset_ = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(slack + 1));
  epoch_ = epoch;
}

std::vector<std::int64_t> WindowSampler::starts(std::int64_t position, std::int64_t count) {
  std::vector<std::int64_t> result;
  for (std::int64_t i = position; i < position + count; ++i) {
    if (i / per_epoch_ != epoch_) shuffle(i / per_epoch_);
    result.push_back(offset_ + order_[i % per_epoch_] * sequence_);
  }
  return result;
}

}  // namespace moh::data
