// Pictures from a DiT: sampling, the way back from latents, and sheets of many pictures.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "moh/diffusion/sampler.h"
#include "moh/io/image.h"
#include "moh/models/dit.h"
#include "moh/models/vae.h"

namespace moh::generate {

struct PictureOptions {
  diffusion::SamplerOptions sampler;
  std::int64_t size = 0;  // height and width of what is denoised; 0: the model's
  std::optional<at::ScalarType> autocast;
};

// [N, H, W, 3] uint8. `vae` is needed by a latent model. A picture depends on the seed, its number and its label, not
// on the others, nor on the number of threads. `on_step` as in diffusion::Sampler; when it says stop, the result is
// undefined. Errors: a label out of range, a size that the patch does not divide, an autoencoder that does not fit.
at::Tensor sample_pictures(const models::Dit& model, const models::Vae* vae, const PictureOptions& options,
                           const diffusion::Pictures& pictures, const std::function<bool(std::int64_t)>& on_step);

// What would make sample_pictures fail, before any work.
void check_pictures(const models::Dit& model, const models::Vae* vae, const PictureOptions& options,
                    const std::vector<std::int64_t>& labels);

// [-1, 1] to bytes: [N, 3, H, W] -> [N, H, W, 3] uint8.
at::Tensor to_bytes(const at::Tensor& pictures);

// Pictures [N, H, W, 3] beside one another, row by row, with thin white lines between: [.., .., 3].
at::Tensor picture_sheet(const at::Tensor& pictures, std::int64_t columns);
// Such a sheet, or one picture [H, W, 3], to be written as a file.
io::Image sheet_image(const at::Tensor& pictures, std::int64_t columns);

}  // namespace moh::generate
