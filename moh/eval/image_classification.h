// Classification of pictures: preprocessing as the model's config.json says, top-1 and top-5 on an image folder, head
// load per class.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "moh/data/augment.h"
#include "moh/data/image_folder.h"
#include "moh/models/vit.h"

namespace moh::eval {

data::PictureFormat picture_format(const models::VitConfig& config);

// [3, size, size], normalised.
at::Tensor picture_tensor(const io::Image& image, const data::PictureFormat& format);

// (shared + selected) heads per layer over all heads, measured; 1 for a dense model.
double active_share(const models::VitOutput& output);

struct ClassificationOptions {
  std::int64_t batch = 64;
  std::int64_t max_images = 0;  // spread over the folder; 0: all
  int workers = 2;              // threads that decode
  std::optional<at::ScalarType> autocast;
  // Several processes may do a part each: this is number `part`, and `sum` adds numbers up over all of them. The result
  // is that of all but for skipped and head_load, which are this part's.
  int part = 0, parts = 1;
  std::function<void(std::vector<double>&)> sum = {};
};

struct ClassificationResult {
  double top1 = 0, top5 = 0, loss = 0, active_heads = 1;
  std::int64_t images = 0;
  std::vector<std::string> skipped;  // errors of pictures that could not be read
  // Share of the last routed layer's tokens that select each of its routed heads, [classes][E]; empty if none routes.
  std::vector<std::vector<double>> head_load;
  std::string head_load_layer;
};

// The folder's classes must be the model's: the same number, and the same names where the model has names.
void check_classes(const models::VitConfig& config, const data::ImageFolder& folder);

ClassificationResult classify_folder(const models::Vit& model, const data::ImageFolder& folder,
                                     const ClassificationOptions& options,
                                     const std::function<void(double done)>& progress = {});

}  // namespace moh::eval
