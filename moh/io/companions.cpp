#include "moh/io/companions.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <string_view>

#include "moh/base/error.h"
#include "moh/io/files.h"
#include "moh/io/folder_walk.h"
#include "moh/io/gguf.h"
#include "moh/text/tokenizer.h"
#include "moh/text/tokenizer_gguf.h"

namespace moh::io {
namespace {

namespace fs = std::filesystem;
constexpr std::uint64_t kMaxBytes = 256 << 20;

bool ends_with_any(std::string_view name, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(), [&](std::string_view ending) { return name.ends_with(ending); });
}

bool is_weights(std::string_view name) {
  return ends_with_any(name, {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx",
                              ".ot", ".index.json", ".tflite", ".mlmodel"});
}

// Of moh's training: its state, which the new folder has no part in.
bool is_of_training(std::string_view name) {
  constexpr std::array<std::string_view, 3> kNames = {"run.json", "log.jsonl", "trainer.json"};
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end() || name.starts_with("events.out.tfevents") ||
         ends_with_any(name, {".npy", ".npz"});
}

bool is_companion(const std::string& name) {
  return !is_weights(name) && !is_of_training(name) && !name.ends_with(".py") && name != "config.json";
}

bool same_folder(const fs::path& a, const fs::path& b) {
  std::error_code error;
  return fs::equivalent(a, b, error) && !error;
}

void copy_folder(const std::string& from, const std::string& to, const std::string& out, int depth) {
  const auto any = [](const std::string&) { return true; };
  const FolderFiles all = files_in(from, /*deep=*/false, any);
  const auto name_of = [](const std::string& path) { return fs::path(path).filename().string(); };
  const bool has_weights = std::any_of(all.paths.begin(), all.paths.end(),
                                       [&](const std::string& path) { return is_weights(name_of(path)); });
  if (depth > 0 && has_weights) return;  // another model: onnx/, original/, a checkpoint
  for (const std::string& path : all.paths) {
    std::error_code error;
    if (!is_companion(name_of(path)) || fs::file_size(path, error) > kMaxBytes || error) continue;
    fs::create_directories(to, error);
    write_file(to + "/" + name_of(path), read_file(path, kMaxBytes));
  }
  constexpr int kDeepest = 3;
  if (depth == kDeepest) return;
  for (const std::string& name : folders_in(from)) {
    const std::string inner = from + "/" + name;
    if (name == "checkpoints" || same_folder(inner, out) || fs::is_regular_file(inner + "/config.json")) continue;
    copy_folder(inner, to + "/" + name, out, depth + 1);
  }
}

}  // namespace

void copy_model_files(const std::string& from, const std::string& to) {
  std::error_code error;
  if (same_folder(from, to)) return;
  // The tokenizer within a GGUF file, unless there is one beside it.
  const bool beside = fs::is_directory(from, error) && !text::tokenizer_files(from).empty();
  if (const auto gguf = beside ? std::nullopt : find_gguf(from)) text::write_gguf_tokenizer(GgufFile(*gguf), to);
  if (!fs::is_directory(from, error)) return;
  copy_folder(from, to, to, 0);
}

}  // namespace moh::io
