#include "moh/io/checkpoint.h"

#include <ATen/ATen.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <set>

#include "moh/base/error.h"
#include "moh/io/files.h"
#include "moh/io/gguf_model.h"
#include "moh/io/safetensors.h"
#include "moh/io/torch_file.h"
#include "moh/text/tokenizer.h"

namespace moh::io {
namespace {

namespace fs = std::filesystem;
constexpr std::uint64_t kMaxJsonBytes = 16 << 20;

const std::map<std::string, at::ScalarType> kTypes = {
    {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf}, {"BF16", at::kBFloat16}, {"I64", at::kLong},
    {"I32", at::kInt},    {"I16", at::kShort}, {"I8", at::kChar},  {"U8", at::kByte},       {"BOOL", at::kBool}};

std::string type_name(const at::Tensor& tensor) {
  for (const auto& [name, type] : kTypes) {
    if (type == tensor.scalar_type()) return name;
  }
  fail("[safetensors] tensors of type ", tensor.scalar_type(), " cannot be written");
}

at::ScalarType type_of(const std::string& dtype, const std::string& name, const std::string& path) {
  const auto type = kTypes.find(dtype);
  MOH_CHECK(type != kTypes.end(), "[checkpoint] ", path, ": tensor `", name, "` has dtype ", dtype,
            ", which is not supported");
  return type->second;
}

at::Tensor to_tensor(const std::shared_ptr<SafetensorsFile>& file, const TensorView& view,
                     std::optional<at::ScalarType> dtype) {
  const at::TensorOptions options(type_of(view.dtype, view.name, file->path()));
  if (view.bytes.empty()) return at::empty(view.shape, options);
  void* data = const_cast<std::byte*>(view.bytes.data());
  at::Tensor tensor;
  if (reinterpret_cast<std::uintptr_t>(data) % options.dtype().itemsize() == 0) {
    tensor = at::from_blob(
        data, view.shape, [file](void*) {}, options);
  } else {  // a file whose header was not padded
    tensor = at::empty(view.shape, options);
    std::memcpy(tensor.mutable_data_ptr(), data, view.bytes.size());
    drop_pages(view.bytes);
  }
  if (!dtype || !tensor.is_floating_point() || tensor.scalar_type() == *dtype) return tensor;
  tensor = tensor.to(*dtype);
  drop_pages(view.bytes);
  return tensor;
}

void append_file(const std::string& path, std::optional<at::ScalarType> dtype, NamedTensors& tensors) {
  const auto file = std::make_shared<SafetensorsFile>(path);
  for (const TensorView& view : file->tensors()) tensors.emplace_back(view.name, to_tensor(file, view, dtype));
}

}  // namespace

NamedTensors load_tensors(const std::string& path, std::optional<at::ScalarType> dtype) {
  if (const auto gguf = find_gguf(path)) return GgufModel(*gguf).tensors(dtype);
  NamedTensors tensors;
  if (fs::is_regular_file(path)) {
    append_file(path, dtype, tensors);
    return tensors;
  }
  const std::string single = path + "/model.safetensors", index_file = path + "/model.safetensors.index.json";
  if (fs::exists(single)) {
    append_file(single, dtype, tensors);
    return tensors;
  }
  MOH_CHECK(fs::exists(index_file), "[checkpoint] ", path,
            " has neither model.safetensors nor model.safetensors.index.json");
  const Json index = parse_json(read_file(index_file, kMaxJsonBytes), index_file);
  const auto map = index.find("weight_map");
  MOH_CHECK(index.is_object() && map != index.end() && map->is_object(), "[checkpoint] ", index_file,
            ": `weight_map` is missing");
  std::map<std::string, std::string> shard_of;
  std::vector<std::string> shards;  // in order of first mention
  for (const auto& item : map->items()) {
    MOH_CHECK(item.value().is_string(), "[checkpoint] ", index_file, ": `", item.key(), "` names no file");
    const auto shard = item.value().get<std::string>();
    MOH_CHECK(shard.find('/') == std::string::npos && !shard.empty(), "[checkpoint] ", index_file, ": shard `", shard,
              "` must be a file of the same folder");
    shard_of[item.key()] = shard;
    if (std::find(shards.begin(), shards.end(), shard) == shards.end()) shards.push_back(shard);
  }
  for (const std::string& shard : shards) {
    const std::size_t before = tensors.size();
    append_file(path + "/" + shard, dtype, tensors);
    for (std::size_t i = before; i < tensors.size(); ++i) {
      const auto found = shard_of.find(tensors[i].first);
      MOH_CHECK(found != shard_of.end() && found->second == shard, "[checkpoint] ", path, "/", shard, ": tensor `",
                tensors[i].first, "` is not where the index says");
      shard_of.erase(found);
    }
  }
  MOH_CHECK(shard_of.empty(), "[checkpoint] ", index_file, ": tensor `", shard_of.begin()->first, "` is missing from ",
            shard_of.begin()->second);
  return tensors;
}

NamedTensors load_torch_tensors(const std::string& path, const std::vector<std::string>& keys) {
  const TorchFile file(path);
  NamedTensors tensors;
  for (const auto& [name, pickled] : file.tensors(keys)) {
    const at::ScalarType type = type_of(pickled->dtype, name, path);
    at::Tensor tensor = at::empty(pickled->shape, at::TensorOptions(type));
    if (tensor.numel() > 0) {
      auto* start = const_cast<std::byte*>(pickled->storage.data()) + pickled->offset * dtype_bytes(pickled->dtype);
      tensor.copy_(at::from_blob(start, pickled->shape, pickled->stride, at::TensorOptions(type)));
    }
    tensors.emplace_back(name, tensor);
  }
  return tensors;
}

void check_finite(const NamedTensors& tensors, const std::string& where) {
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.is_floating_point() || tensor.numel() == 0) continue;
    // Least and largest value: NaN shows in both, and nothing of the tensor's size is allocated.
    const auto [least, most] = at::aminmax(tensor);
    MOH_CHECK(std::isfinite(least.item<double>()) && std::isfinite(most.item<double>()), "[", where, "] tensor `", name,
              "` holds NaN or infinity; the checkpoint is damaged, or its training diverged");
  }
}

void save_tensors(const std::string& file, const NamedTensors& tensors,
                  const std::map<std::string, std::string>& metadata) {
  std::vector<at::Tensor> kept;  // alive until written
  std::vector<TensorView> views;
  for (const auto& [name, tensor] : tensors) {
    kept.push_back(tensor.detach().cpu().contiguous());
    const at::Tensor& ready = kept.back();
    views.push_back(
        {name,
         type_name(ready),
         ready.sizes().vec(),
         {static_cast<const std::byte*>(ready.const_data_ptr()), static_cast<std::size_t>(ready.nbytes())}});
  }
  write_safetensors(file, views, metadata);
}

Json load_config(const std::string& folder) {
  if (const auto gguf = find_gguf(folder)) return GgufModel(*gguf).config();
  const std::string file = folder + "/config.json";
  MOH_CHECK(!fs::is_regular_file(folder), "[checkpoint] ", folder,
            " is a file, not a model folder; `moh convert FILE FOLDER` makes one of a checkpoint (a zip archive of "
            "torch.save, or .safetensors)");
  MOH_CHECK(fs::is_directory(folder), "[checkpoint] ", folder, " is not a model folder: no such directory");
  MOH_CHECK(fs::exists(file), "[checkpoint] ", folder, " is not a model folder: it has no config.json");
  return parse_json(read_file(file, kMaxJsonBytes), file);
}

void save_json(const std::string& file, const Json& json) { write_file(file, json.dump(2) + "\n"); }

void copy_companions(const std::string& from, const std::string& to) {
  std::vector<std::string> names = text::tokenizer_files(from);
  names.emplace_back("generation_config.json");
  for (const std::string& name : names) {
    if (fs::exists(from + "/" + name)) write_file(to + "/" + name, read_file(from + "/" + name));
  }
}

}  // namespace moh::io
