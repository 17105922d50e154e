#include "moh/io/checkpoint.h"

#include <ATen/ATen.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <set>

#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/io/files.h"
#include "moh/io/gguf_model.h"
#include "moh/io/name_text.h"
#include "moh/io/safetensors.h"
#include "moh/io/torch_file.h"
#include "moh/io/weight_files.h"
#include "moh/io/wrapper_names.h"
#include "moh/text/tokenizer.h"

namespace moh::io {
namespace {

namespace fs = std::filesystem;
constexpr std::uint64_t kMaxJsonBytes = 16 << 20;

const std::map<std::string, at::ScalarType> kTypes = {
    {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf}, {"BF16", at::kBFloat16}, {"I64", at::kLong},
    {"I32", at::kInt},    {"I16", at::kShort}, {"I8", at::kChar},  {"U8", at::kByte},       {"BOOL", at::kBool}};

constexpr double kReported = 64 << 20;  // bytes

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

// Converted to `dtype`, with its part of the map given back.
at::Tensor converted(const at::Tensor& tensor, std::optional<at::ScalarType> dtype, std::span<const std::byte> bytes) {
  if (!dtype || !tensor.is_floating_point() || tensor.scalar_type() == *dtype) return tensor;
  at::Tensor result = tensor.to(*dtype);
  drop_pages(bytes);
  return result;
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
  return converted(tensor, dtype, view.bytes);
}

at::Tensor to_tensor(const std::shared_ptr<TorchFile>& file, const std::string& name, const PickledTensor& pickled) {
  const at::TensorOptions options(type_of(pickled.dtype, name, file->path()));
  const auto item = static_cast<std::int64_t>(options.dtype().itemsize());
  if (std::find(pickled.shape.begin(), pickled.shape.end(), 0) != pickled.shape.end())
    return at::empty(pickled.shape, options);
  void* start = const_cast<std::byte*>(pickled.storage.data()) + pickled.offset * item;
  if (reinterpret_cast<std::uintptr_t>(start) % item == 0) {
    return at::from_blob(
               start, pickled.shape, pickled.stride, [file](void*) {}, options)
        .contiguous();
  }
  // Copied as bytes: a tensor of unaligned numbers must not be made.
  const std::vector<std::byte> copy(pickled.storage.begin(), pickled.storage.end());
  auto* aligned = const_cast<std::byte*>(copy.data()) + pickled.offset * item;
  return at::from_blob(aligned, pickled.shape, pickled.stride, options).clone(at::MemoryFormat::Contiguous);
}

void append_torch_file(const std::string& path, const std::vector<std::string>& keys,
                       std::optional<at::ScalarType> dtype, NamedTensors& tensors) {
  const auto file = std::make_shared<TorchFile>(path);
  for (const auto& [name, pickled] : file->tensors(keys)) {
    tensors.emplace_back(name, converted(to_tensor(file, name, *pickled), dtype, pickled->storage));
  }
}

void append_file(const std::string& path, std::optional<at::ScalarType> dtype, NamedTensors& tensors) {
  const auto file = std::make_shared<SafetensorsFile>(path);
  double bytes = 0;
  for (const TensorView& view : file->tensors()) bytes += static_cast<double>(view.bytes.size());
  ActivityCount done("reading weights", bytes, "bytes", kReported);  // shown only where something is converted
  for (const TensorView& view : file->tensors()) {
    tensors.emplace_back(view.name, to_tensor(file, view, dtype));
    done.add(static_cast<double>(view.bytes.size()));
  }
  done.end();
}

void strip_names(NamedTensors& tensors, const std::string& path) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors) names.push_back(name);
  strip_wrappers(names);
  std::set<std::string_view> known;
  for (std::size_t i = 0; i < names.size(); ++i) {
    MOH_CHECK(known.insert(names[i]).second, "[checkpoint] ", path, ": two tensors are named ", name_text(names[i]),
              " but for what torch.compile and the like put into names");
    tensors[i].first = names[i];
  }
}

// Names under which training code keeps the weights among other things.
const std::vector<std::string> kModelKeys = {"state_dict", "model", "module"};

}  // namespace

NamedTensors load_tensors(const std::string& path, std::optional<at::ScalarType> dtype) {
  if (const auto gguf = find_gguf(path)) return GgufModel(*gguf).tensors(dtype);
  NamedTensors tensors;
  if (fs::is_regular_file(path)) {
    append_file(path, dtype, tensors);
    strip_names(tensors, path);
    return tensors;
  }
  WeightFiles weights = find_weights(path);
  for (const std::string& file : weights.files) {
    const std::size_t before = tensors.size();
    if (weights.of_torch) {
      append_torch_file(file, kModelKeys, dtype, tensors);
    } else {
      append_file(file, dtype, tensors);
    }
    if (weights.index_file.empty()) continue;
    for (std::size_t i = before; i < tensors.size(); ++i) {
      const auto found = weights.file_of.find(tensors[i].first);
      MOH_CHECK(found != weights.file_of.end() && path + "/" + found->second == file, "[checkpoint] ", file,
                ": tensor `", tensors[i].first, "` is not where the index says");
      weights.file_of.erase(found);
    }
  }
  MOH_CHECK(weights.file_of.empty(), "[checkpoint] ", weights.index_file, ": tensor `", weights.file_of.begin()->first,
            "` is missing from ", weights.file_of.begin()->second);
  strip_names(tensors, path);
  return tensors;
}

NamedTensors load_torch_tensors(const std::string& path, const std::vector<std::string>& keys) {
  NamedTensors tensors;
  append_torch_file(path, keys, std::nullopt, tensors);
  return tensors;
}

void check_finite(const NamedTensors& tensors, const std::string& where) {
  double done = 0, all = 0;
  for (const auto& [name, tensor] : tensors) all += static_cast<double>(tensor.nbytes());
  for (const auto& [name, tensor] : tensors) {
    done += static_cast<double>(tensor.nbytes());
    report_activity({"checking weights", done, all, "bytes"});
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
  const fs::path parent = fs::path(folder).parent_path();
  MOH_CHECK(!fs::is_regular_file(folder) || !fs::exists(parent / "config.json"), "[checkpoint] ", folder,
            " is a file of a model folder; did you mean the folder, ", parent.empty() ? "." : parent.string(), "?");
  MOH_CHECK(!fs::is_regular_file(folder), "[checkpoint] ", folder,
            " is a file, not a model folder; `moh convert FILE FOLDER` makes one of a checkpoint (a zip archive of "
            "torch.save, or .safetensors)");
  MOH_CHECK(fs::is_directory(folder), "[checkpoint] ", folder, " is not a model folder: no such directory");
  MOH_CHECK(fs::exists(file), "[checkpoint] ", folder, " is not a model folder: it has no config.json",
            model_folder_hint(folder));
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
