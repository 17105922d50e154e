#include "moh/eval/picture_features.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <filesystem>
#include <mutex>

#include "moh/base/error.h"
#include "moh/data/ordered_loader.h"
#include "moh/eval/image_classification.h"
#include "moh/io/feature_file.h"
#include "moh/io/folder_walk.h"
#include "moh/ops/autocast.h"

namespace moh::eval {
namespace {

namespace fs = std::filesystem;
using at::Tensor;

Pictures pictures_of_array(const std::string& path) {
  const auto arrays = io::load_arrays(path);
  MOH_CHECK(arrays.size() == 1, "[pictures] ", path, " must hold one array of pictures (arr_0), got ", arrays.size());
  const Tensor array = arrays.begin()->second.contiguous();
  MOH_CHECK(array.dim() == 4 && array.size(3) == 3 && array.scalar_type() == at::kByte, "[pictures] ", path,
            " must be uint8 [N, H, W, 3], got ", array.scalar_type(), " ", array.sizes());
  return {array.size(0), [array](std::int64_t index) {
            const std::int64_t bytes = array.stride(0);
            const auto* begin = array.const_data_ptr<std::uint8_t>() + index * bytes;
            return io::Image{array.size(2), array.size(1), {begin, begin + bytes}};
          }};
}

}  // namespace

Pictures open_pictures(const std::string& path, std::int64_t limit) {
  Pictures all;
  if (fs::is_directory(path)) {
    const auto files = io::files_in(path, /*deep=*/true, io::is_picture_name).paths;
    all = {static_cast<std::int64_t>(files.size()),
           [files](std::int64_t index) { return io::load_image(files[index]); }};
  } else {
    MOH_CHECK(fs::exists(path), "[pictures] no such file or folder: ", path);
    all = pictures_of_array(path);
  }
  MOH_CHECK(all.count > 0, "[pictures] ", path, " holds no pictures (.png, .jpg, .jpeg, or an .npz of them)");
  if (limit <= 0 || limit >= all.count) return all;
  return {limit, [all, limit](std::int64_t index) { return all.read(index * all.count / limit); }};
}

PictureFeatures picture_features(const models::Vit& model, const Pictures& pictures, const FeatureOptions& options,
                                 const std::function<bool(double done)>& on_done) {
  MOH_CHECK(options.batch > 0, "[features] batch must be positive, got ", options.batch);
  const data::PictureFormat format = picture_format(model.config());
  const std::int64_t batches = (pictures.count + options.batch - 1) / options.batch;
  std::mutex mutex;
  std::vector<std::string> skipped;
  data::OrderedLoader<std::vector<Tensor>> loader(
      [&](std::int64_t number) {
        std::vector<Tensor> batch;
        const std::int64_t end = std::min((number + 1) * options.batch, pictures.count);
        for (std::int64_t i = number * options.batch; i < end; ++i) {
          try {
            batch.push_back(picture_tensor(pictures.read(i), format));
          } catch (const Error& error) {
            const std::lock_guard lock(mutex);
            skipped.emplace_back(error.what());
          }
        }
        return batch;
      },
      0, options.workers, options.workers + 1);
  const c10::NoGradGuard no_grad;
  std::vector<Tensor> features, probabilities;
  for (std::int64_t number = 0; number < batches; ++number) {
    const std::vector<Tensor> batch = loader.take();
    if (batch.empty()) continue;
    const Tensor images = at::stack(batch).to(model.device());
    const ops::Autocast autocast(options.autocast, model.device().type());
    const auto output = model.forward({.images = images});
    features.push_back(output.features.to(at::kFloat).cpu());
    probabilities.push_back(at::softmax(output.logits.to(at::kFloat), -1).cpu());
    if (on_done && !on_done(static_cast<double>(number + 1) / static_cast<double>(batches))) return {};
  }
  MOH_CHECK(!features.empty(), "[features] none of ", pictures.count,
            " pictures can be read; the first: ", skipped.front());
  std::sort(skipped.begin(), skipped.end());
  return {at::cat(features), at::cat(probabilities), std::move(skipped)};
}

}  // namespace moh::eval
