#include "moh/io/weight_files.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <string_view>

#include "moh/base/error.h"
#include "moh/base/fields.h"
#include "moh/io/files.h"
#include "moh/io/name_text.h"

namespace moh::io {
namespace {

namespace fs = std::filesystem;
constexpr std::uint64_t kMaxIndexBytes = 64 << 20;

struct Layout {
  const char *stem, *ending;
  bool of_torch;
};
constexpr Layout kLayouts[] = {{"model", ".safetensors", false}, {"pytorch_model", ".bin", true}};

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

void read_index(const std::string& folder, const std::string& index_file, WeightFiles& weights) {
  const Json index = parse_json(read_file(index_file, kMaxIndexBytes), index_file);
  MOH_CHECK(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(), "[checkpoint] ",
            index_file, ": `weight_map` is missing");
  weights.index_file = index_file;
  std::set<std::string> known;
  for (const auto& item : index["weight_map"].items()) {
    MOH_CHECK(item.value().is_string(), "[checkpoint] ", index_file, ": ", name_text(item.key()), " names no file");
    const auto shard = item.value().get<std::string>();
    MOH_CHECK(shard.find('/') == std::string::npos && !shard.empty(), "[checkpoint] ", index_file, ": shard ",
              name_text(shard), " must be a file of the same folder");
    weights.file_of[item.key()] = shard;
    if (known.insert(shard).second) weights.files.push_back(folder + "/" + shard);
  }
  for (const std::string& file : weights.files) {
    MOH_CHECK(fs::exists(file), "[checkpoint] ", file, " is missing, which ", index_file,
              " names; is the download complete?");
  }
}

// STEM-00001-of-00003ENDING and its fellows; false: there are none.
bool find_numbered(const std::string& folder, const Layout& layout, const std::vector<std::string>& names,
                   WeightFiles& weights) {
  const std::string stem = std::string(layout.stem) + "-";
  for (const std::string& name : names) {
    const std::size_t of = stem.size() + 5;
    if (!name.starts_with(stem) || !name.ends_with(layout.ending) ||
        name.substr(std::min(of, name.size()), 4) != "-of-") {
      continue;
    }
    const std::string count = name.substr(of + 4, name.size() - of - 4 - std::string_view(layout.ending).size());
    if (count.size() != 5 || count.find_first_not_of("0123456789") != std::string::npos) continue;
    for (int i = 1; i <= std::stoi(count); ++i) {
      std::string number = std::to_string(i);
      number.insert(0, 5 - number.size(), '0');
      const std::string shard = folder + "/" + stem + number + "-of-" + count + layout.ending;
      MOH_CHECK(fs::exists(shard), "[checkpoint] ", shard, " is missing; is the download complete?");
      weights.files.push_back(shard);
    }
    return !weights.files.empty();
  }
  return false;
}

// What a folder that is no model's holds instead, with the remedy; empty: nothing that is known.
std::string other_layout(const std::vector<std::string>& names) {
  const auto any = [&](const auto& fits) { return std::any_of(names.begin(), names.end(), fits); };
  const auto ends = [&](std::string_view ending) {
    return any([&](const std::string& name) { return name.ends_with(ending); });
  };
  const auto begins = [&](std::string_view beginning) {
    return any([&](const std::string& name) { return name.starts_with(beginning); });
  };
  if (begins("adapter_model") || begins("adapter_config")) {
    return "; it holds an adapter (LoRA) alone: merge it into its model first (peft: merge_and_unload, "
           "save_pretrained)";
  }
  if (begins("consolidated.")) {
    return "; it holds the weights in Meta's or Mistral's own layout: take the Hugging Face form of the model";
  }
  if (begins("tf_model") || begins("flax_model") || ends(".onnx") || ends(".msgpack")) {
    return "; it holds those of another framework: load it in transformers and save it by save_pretrained";
  }
  if (begins("global_step")) {
    return "; it holds a checkpoint of DeepSpeed, in parts: its zero_to_fp32.py makes one file of them";
  }
  if (ends(".incomplete") || ends(".part") || ends(".crdownload")) return "; a download is not complete";
  return "";
}

[[noreturn]] void no_weights(const std::string& folder, const std::vector<std::string>& names) {
  std::string said =
      " has no weights: neither model.safetensors, pytorch_model.bin, an index of shards, nor a .gguf file";
  if (const std::string other = other_layout(names); !other.empty()) {
    said += other;
  } else {
    said += model_folder_hint(folder);
  }
  fail("[checkpoint] ", folder, said);
}

bool is_model_folder(const fs::path& folder) {
  std::error_code error;
  return fs::is_regular_file(folder / "config.json", error);
}

}  // namespace

WeightFiles find_weights(const std::string& folder) {
  const std::vector<std::string> names = names_in(folder);
  for (const Layout& layout : kLayouts) {
    WeightFiles weights;
    weights.of_torch = layout.of_torch;
    const std::string single = folder + "/" + layout.stem + layout.ending;
    if (fs::exists(single)) {
      weights.files.push_back(single);
      return weights;
    }
    if (fs::exists(single + ".index.json")) {
      read_index(folder, single + ".index.json", weights);
      return weights;
    }
    if (find_numbered(folder, layout, names, weights)) return weights;
  }
  no_weights(folder, names);
}

std::string model_folder_hint(const std::string& folder) {
  for (const std::string& name : names_in(folder)) {
    const fs::path inner = fs::path(folder) / name;
    std::error_code error;
    if (name.starts_with('.') || !fs::is_directory(inner, error)) continue;
    if (is_model_folder(inner)) return "; did you mean " + one_line(inner.string()) + "?";
    if (name != "snapshots") continue;  // a model in the cache of huggingface_hub
    for (const std::string& revision : names_in(inner.string())) {
      if (is_model_folder(inner / revision)) return "; did you mean " + one_line((inner / revision).string()) + "?";
    }
  }
  return is_model_folder(folder) ? "" : other_layout(names_in(folder));
}

void refuse_stand_in(std::span<const std::byte> content, const std::string& prefix) {
  const std::string_view text(reinterpret_cast<const char*>(content.data()), std::min<std::size_t>(content.size(), 64));
  MOH_CHECK(!text.starts_with("version https://git-lfs"), prefix,
            "this is a note of Git LFS that stands for the file, not the file; fetch it with `git lfs pull`");
  std::string lower;
  for (const char c : text) lower += c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  MOH_CHECK(!lower.starts_with("<!doctype html") && !lower.starts_with("<html"), prefix,
            "this is a web page, not the file; the address that it was fetched from gives a page, or an error");
}

}  // namespace moh::io
