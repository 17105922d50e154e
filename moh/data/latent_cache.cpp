#include "moh/data/latent_cache.h"

#include <ATen/ATen.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "moh/base/error.h"
#include "moh/data/picture_folder.h"
#include "moh/io/npy.h"

namespace moh::data {
namespace {

namespace fs = std::filesystem;
using at::Tensor;
constexpr std::uint64_t kMaxJsonBytes = std::uint64_t{1} << 30;  // ImageNet: 1.3 million labels

std::string latents_file(const std::string& cache) { return cache + "/latents.npy"; }
std::string note_file(const std::string& cache) { return cache + "/latents.json"; }

// [2, 2, C, H, W] of one picture [3, S, S] uint8.
Tensor encode_picture(const models::Vae& vae, const Tensor& picture) {
  const Tensor x = picture.to(at::kFloat) / 127.5 - 1.0;
  const auto latents = vae.encode(at::stack({x, x.flip({-1})}));
  return at::stack({latents.mean, latents.log_variance}, 1).contiguous();
}

Json describe(const ImageFolder& folder, const models::Vae& vae, std::int64_t picture_size) {
  Json note = Json::object();
  note["pictures"] = folder.items.size();
  note["picture_size"] = picture_size;
  note["autoencoder"] = vae.fingerprint();
  note["scaling_factor"] = vae.config().scaling_factor;
  note["shift_factor"] = vae.config().shift_factor;
  note["classes"] = folder.classes;
  note["labels"] = folder_labels(folder);
  return note;
}

}  // namespace

bool make_latent_cache(const ImageFolder& folder, const models::Vae& vae, std::int64_t picture_size,
                       const std::string& cache, const std::function<bool(double)>& on_done,
                       std::vector<std::string>& unreadable) {
  const Json note = describe(folder, vae, picture_size);
  std::error_code error;
  fs::create_directories(cache, error);
  MOH_CHECK(!error, "[latents] cannot make folder ", cache, ": ", error.message());
  if (fs::exists(note_file(cache))) {
    const Json before = parse_json(io::read_file(note_file(cache), kMaxJsonBytes), note_file(cache));
    for (const auto& item : note.items()) {
      MOH_CHECK(before.is_object() && before.value(item.key(), Json()) == item.value(), "[latents] ", cache,
                " was made with another `", item.key(), "`; remove it or choose another folder");
    }
  } else {
    io::write_file(note_file(cache), note.dump() + "\n");
  }
  if (fs::exists(latents_file(cache))) return true;

  const std::string part = latents_file(cache) + ".part";
  const std::int64_t side = picture_size / vae.config().reduction(), channels = vae.config().latent_channels;
  const auto count = static_cast<std::int64_t>(folder.items.size());
  const std::string head = io::npy_head("f4", {count, 2, 2, channels, side, side});
  const std::uint64_t row = 4 * sizeof(float) * static_cast<std::uint64_t>(channels * side * side);
  std::int64_t done = 0;
  if (fs::exists(part) && fs::file_size(part) >= head.size()) {
    done = static_cast<std::int64_t>((fs::file_size(part) - head.size()) / row);
    fs::resize_file(part, head.size() + static_cast<std::uint64_t>(done) * row);  // half a picture
  } else {
    std::ofstream(part, std::ios::binary | std::ios::trunc) << head;
  }
  std::ofstream out(part, std::ios::binary | std::ios::app);
  for (; done < count; ++done) {
    Tensor latents;
    try {
      latents = encode_picture(vae, folder_picture(folder, done, picture_size));
    } catch (const Error& error) {
      unreadable.emplace_back(error.what());
      check_some_readable(folder, unreadable.size(), unreadable.back());
      latents = at::full({2, 2, channels, side, side}, std::numeric_limits<float>::quiet_NaN());
    }
    out.write(static_cast<const char*>(latents.const_data_ptr()), static_cast<std::streamsize>(latents.nbytes()));
    MOH_CHECK(out.good(), "[latents] cannot write ", part, "; is the disk full?");
    if (on_done && !on_done(static_cast<double>(done + 1) / static_cast<double>(count)) && done + 1 < count) {
      return false;
    }
  }
  out.close();
  MOH_CHECK(out.good() && fs::file_size(part) == head.size() + static_cast<std::uint64_t>(count) * row,
            "[latents] cannot write ", part, "; is the disk full?");
  fs::rename(part, latents_file(cache));
  io::fsync_folder(cache);
  return true;
}

LatentSource::LatentSource(const std::string& folder) {
  const std::string file = latents_file(folder), note_path = note_file(folder);
  MOH_CHECK(fs::exists(file) && fs::exists(note_path), "[latents] ", folder, " holds no finished latent cache");
  const Json note = parse_json(io::read_file(note_path, kMaxJsonBytes), note_path);
  map_ = std::make_shared<io::MappedFile>(file);
  const auto header = io::read_npy_header(map_->bytes(), file);
  const auto& shape = header.shape;
  MOH_CHECK(header.dtype == "f4" && shape.size() == 6 && shape[1] == 2 && shape[2] == 2, "[latents] ", file,
            " must be f4 [N, 2, 2, C, H, W]");
  try {
    note.at("labels").get_to(labels_);
    note.at("classes").get_to(classes_);
    note.at("scaling_factor").get_to(scale_);
    note.at("shift_factor").get_to(shift_);
  } catch (const nlohmann::json::exception& error) {
    fail("[latents] ", note_path, " is damaged: ", error.what());
  }
  MOH_CHECK(static_cast<std::int64_t>(labels_.size()) == shape[0], "[latents] ", note_path, " has ", labels_.size(),
            " labels for ", shape[0], " pictures");
  latents_ = at::from_blob(const_cast<std::byte*>(map_->bytes().data() + header.data_offset), shape,
                           at::TensorOptions(at::kFloat));
  const auto* numbers = latents_.const_data_ptr<float>();
  const std::int64_t row = shape[0] > 0 ? latents_.numel() / shape[0] : 0;
  std::vector<std::int64_t> labels;
  for (std::int64_t i = 0; i < shape[0]; ++i) {
    if (row == 0 || std::isnan(numbers[i * row])) continue;
    rows_.push_back(i);
    labels.push_back(labels_[static_cast<std::size_t>(i)]);
  }
  MOH_CHECK(!rows_.empty(), "[latents] ", folder, " holds no pictures");
  labels_ = std::move(labels);
}

Tensor LatentSource::example(std::int64_t index, bool flip, const at::Generator& random) const {
  const Tensor latent = latents_[rows_[static_cast<std::size_t>(index)]][flip ? 1 : 0];
  const Tensor noise = at::randn(latent[0].sizes(), random, at::TensorOptions(at::kFloat));
  return (latent[0] + at::exp(0.5 * latent[1]) * noise - shift_) * scale_;
}

}  // namespace moh::data
