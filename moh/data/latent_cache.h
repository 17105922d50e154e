// Latents of an ImageFolder, encoded once: mean and log-variance of every picture and of its mirror image.
//
// A cache is a folder: latents.npy, fp32 [N, 2 (as it is, mirrored), 2 (mean, log-variance), C, H, W], and latents.json
// with classes, labels and what they were made from. Encoding that was interrupted goes on after the last whole
// picture. The latents of a picture that cannot be read are NaN; it is no example.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>

#include "moh/data/image_folder.h"
#include "moh/data/picture_source.h"
#include "moh/io/files.h"
#include "moh/models/vae.h"

namespace moh::data {

class LatentSource : public PictureSource {
 public:
  // Errors: no such cache, a damaged one.
  explicit LatentSource(const std::string& folder);
  std::int64_t size() const override { return static_cast<std::int64_t>(labels_.size()); }
  std::vector<std::int64_t> shape() const override { return latents_.sizes().slice(3).vec(); }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::int64_t label(std::int64_t index) const override { return labels_[index]; }
  // A draw from the latent's distribution, shifted and scaled as diffusion models see it.
  at::Tensor example(std::int64_t index, bool flip, const at::Generator& random) const override;

 private:
  std::shared_ptr<io::MappedFile> map_;
  at::Tensor latents_;                       // [N, 2, 2, C, H, W], in the mapping
  std::vector<std::int64_t> rows_, labels_;  // of the pictures that could be read
  std::vector<std::string> classes_;
  double scale_ = 1, shift_ = 0;
};

// Makes or completes the cache of `folder`'s pictures, `picture_size` pixels square; nothing is done if it is there.
// Returns false if `on_done` said stop. What is wrong with pictures that cannot be read is added to `unreadable`.
// Errors: the cache was made from something else; none can be read.
bool make_latent_cache(const ImageFolder& folder, const models::Vae& vae, std::int64_t picture_size,
                       const std::string& cache, const std::function<bool(double)>& on_done,
                       std::vector<std::string>& unreadable);

}  // namespace moh::data
