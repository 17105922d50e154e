// What a vision transformer makes of pictures, before and after its head: the features that Frechet distances,
// precision and recall compare, and the probabilities of the inception score, in a feature space that was trained here.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "moh/io/image.h"
#include "moh/models/vit.h"

namespace moh::eval {

struct Pictures {
  std::int64_t count = 0;
  std::function<io::Image(std::int64_t index)> read;  // called from several threads at a time
};

// A folder with pictures, at any depth, in the order of their paths; or an .npz of uint8 [N, H, W, 3] as `moh sample`
// writes it. At most `limit` of them, spread evenly; 0: all. Errors: neither of the two, no pictures.
Pictures open_pictures(const std::string& path, std::int64_t limit = 0);

struct FeatureOptions {
  std::int64_t batch = 64;
  int workers = 2;  // threads that decode
  std::optional<at::ScalarType> autocast;
};

struct PictureFeatures {
  at::Tensor features;                    // [N, C] fp32, mean over the last stage's tokens
  at::Tensor probabilities;               // [N, classes] fp32
  std::vector<std::string> skipped = {};  // errors of the pictures that cannot be read
};

// Pictures are scaled as the model's evaluation does it. `on_done` hears the share that is done and stops by returning
// false; then the features are undefined. Error: no picture that can be read.
PictureFeatures picture_features(const models::Vit& model, const Pictures& pictures, const FeatureOptions& options,
                                 const std::function<bool(double done)>& on_done = {});

}  // namespace moh::eval
