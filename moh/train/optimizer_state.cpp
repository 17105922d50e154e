#include "moh/train/optimizer_state.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string_view>

#include "moh/base/error.h"

namespace moh::train {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kStart = "start.";

std::vector<std::string> files_of(const std::string& folder) {
  if (fs::exists(folder + "/" + optimizer_file(0, 1))) return {folder + "/" + optimizer_file(0, 1)};
  std::vector<std::string> names;
  if (fs::is_directory(folder)) {
    for (const auto& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with("optimizer-") && name.ends_with(".safetensors")) names.push_back(name);
    }
  }
  MOH_CHECK(!names.empty(), "[train] ", folder, " holds no ", optimizer_file(0, 1));
  std::sort(names.begin(), names.end());
  const auto parts = static_cast<int>(names.size());
  std::vector<std::string> files;
  for (int i = 0; i < parts; ++i) {
    MOH_CHECK(names[i] == optimizer_file(i, parts), "[train] ", folder,
              " is incomplete: of the optimizer's state there is ", names[i], ", but not ", optimizer_file(i, parts));
    files.push_back(folder + "/" + names[i]);
  }
  return files;
}

}  // namespace

std::string optimizer_file(int part, int parts) {
  if (parts == 1) return "optimizer.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "optimizer-%05d-of-%05d.safetensors", part, parts);
  return name;
}

OptimizerState::OptimizerState(const std::string& folder) {
  for (const std::string& file : files_of(folder)) {
    const io::NamedTensors tensors = io::load_tensors(file);
    const std::map<std::string, at::Tensor> by_name(tensors.begin(), tensors.end());
    for (const auto& [name, tensor] : tensors) {
      if (name.starts_with(kStart)) continue;
      // start.NAME serves first.NAME and second.NAME.
      const auto dot = name.find('.');
      const auto start = by_name.find(dot == std::string::npos ? "" : std::string(kStart) + name.substr(dot + 1));
      std::int64_t at = 0;
      if (start != by_name.end()) {
        MOH_CHECK(start->second.numel() == 1 && start->second.scalar_type() == at::kLong, "[train] ", file,
                  " is damaged: `", start->first, "` must be one number");
        at = start->second.item<std::int64_t>();
      }
      pieces_[name].push_back({tensor, at});
    }
  }
}

void OptimizerState::read(const std::string& kind, const std::string& name, std::int64_t size, std::int64_t begin,
                          const at::Tensor& target) const {
  const std::string key = kind + "." + name;
  const auto found = pieces_.find(key);
  const std::int64_t end = begin + target.numel();
  std::int64_t filled = 0, total = 0;
  if (found != pieces_.end()) {
    for (const Piece& piece : found->second) {
      const std::int64_t length = piece.numbers.numel();
      total += length;
      const std::int64_t first = std::max(begin, piece.start), last = std::min(end, piece.start + length);
      if (first >= last) continue;
      if (length == target.numel() && piece.start == begin) {  // whatever the target's strides
        target.copy_(piece.numbers.reshape(target.sizes()));
        filled += length;
        continue;
      }
      target.view(-1)
          .narrow(0, first - begin, last - first)
          .copy_(piece.numbers.reshape(-1).narrow(0, first - piece.start, last - first));
      filled += last - first;
    }
  }
  MOH_CHECK(filled == target.numel() && total == size, "[adamw] `", key,
            "` is missing from the optimizer's state or has another size");
}

at::Tensor OptimizerState::whole(const std::string& name) const {
  const auto found = pieces_.find(name);
  MOH_CHECK(found != pieces_.end(), "[adamw] `", name, "` is missing from the optimizer's state");
  return found->second.front().numbers;
}

}  // namespace moh::train
