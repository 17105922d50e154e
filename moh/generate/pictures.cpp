#include "moh/generate/pictures.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "moh/base/error.h"
#include "moh/diffusion/gaussian.h"
#include "moh/ops/autocast.h"

namespace moh::generate {
namespace {

using at::Tensor;

// On a CPU picture by picture, each with its unlabelled twin if there is one: rounding then cannot depend on how many
// pictures are made together. Little is lost, as the tokens of one picture fill the matrix products.
Tensor run_network(const models::Dit& model, const std::optional<at::ScalarType>& autocast, std::int64_t pictures,
                   const Tensor& x, const Tensor& t, const Tensor& y) {
  const ops::Autocast scope(autocast, model.device().type());
  if (!model.device().is_cpu() || pictures == 1) return model.forward(x, t, y).y;
  Tensor output;
  for (std::int64_t i = 0; i < pictures; ++i) {
    const auto of_picture = [&](const Tensor& all) { return all.slice(0, i, std::nullopt, pictures); };
    const Tensor one = model.forward(of_picture(x).contiguous(), of_picture(t), of_picture(y)).y;
    if (!output.defined()) output = at::empty({x.size(0), one.size(1), one.size(2), one.size(3)}, one.options());
    of_picture(output).copy_(one);
  }
  return output;
}

}  // namespace

void check_pictures(const models::Dit& model, const models::Vae* vae, const PictureOptions& options,
                    const std::vector<std::int64_t>& labels) {
  const auto& config = model.config();
  const std::int64_t size = options.size > 0 ? options.size : config.input_size;
  MOH_CHECK(size % config.patch_size == 0, "[sample] size ", size, " must be a multiple of the model's patch size ",
            config.patch_size);
  for (const std::int64_t label : labels) {
    MOH_CHECK(label >= 0 && label < config.label_rows(), "[sample] class ", label,
              " is out of range: the model has 0..", config.num_classes - 1);
  }
  MOH_CHECK(options.sampler.guidance == 1.0 || config.class_dropout > 0,
            "[sample] this model was trained without hiding labels, so guidance is not possible; use --cfg-scale 1");
  if (config.space == "pixel") {
    MOH_CHECK(config.in_channels == 3, "[sample] a pixel model must have 3 channels to make pictures, got ",
              config.in_channels);
    return;
  }
  MOH_CHECK(vae != nullptr, "[sample] this model makes latents; give its autoencoder with --vae FOLDER");
  MOH_CHECK(vae->config().latent_channels == config.in_channels, "[sample] the autoencoder has ",
            vae->config().latent_channels, " latent channels, the model ", config.in_channels);
}

Tensor to_bytes(const Tensor& pictures) {
  return (pictures * 127.5 + 128.0).clamp(0, 255).to(at::kByte).permute({0, 2, 3, 1}).contiguous().cpu();
}

Tensor sample_pictures(const models::Dit& model, const models::Vae* vae, const PictureOptions& options,
                       const diffusion::Pictures& pictures, const std::function<bool(std::int64_t)>& on_step) {
  check_pictures(model, vae, options, pictures.labels);
  const c10::NoGradGuard no_grad;
  const auto& config = model.config();
  const std::int64_t size = options.size > 0 ? options.size : config.input_size;
  const diffusion::Sampler sampler(options.sampler);
  const diffusion::Schedule trained = diffusion::linear_schedule();  // that t counts in
  const Tensor latents = sampler.run(
      [&](const Tensor& x, const Tensor& t, const Tensor& y) -> Tensor {
        const auto count = static_cast<std::int64_t>(pictures.numbers.size());
        const Tensor output = run_network(model, options.autocast, count, x, t, y);
        return config.predicts_velocity() ? diffusion::noise_from_velocity(trained, output.to(at::kFloat), x, t)
                                          : output;
      },
      {config.in_channels, size, size}, pictures, config.num_classes, on_step, model.device());
  if (!latents.defined()) return latents;
  if (config.space == "pixel") return to_bytes(latents);
  std::vector<Tensor> decoded;  // one at a time: the autoencoder needs much memory for each
  for (const Tensor& latent : latents.split(1)) decoded.push_back(to_bytes(vae->decode(latent)));
  return at::cat(decoded);
}

Tensor picture_sheet(const Tensor& pictures, std::int64_t columns) {
  MOH_CHECK(pictures.dim() == 4 && pictures.size(0) > 0 && columns > 0,
            "[pictures] a sheet needs pictures [N, H, W, 3], got ", pictures.sizes());
  constexpr std::int64_t kLine = 2;
  const std::int64_t count = pictures.size(0), height = pictures.size(1), width = pictures.size(2);
  const std::int64_t used = std::min(columns, count), rows = (count + used - 1) / used;
  Tensor sheet = at::full({rows * (height + kLine) - kLine, used * (width + kLine) - kLine, pictures.size(3)}, 255,
                          pictures.options());
  for (std::int64_t i = 0; i < count; ++i) {
    sheet.narrow(0, i / used * (height + kLine), height)
        .narrow(1, i % used * (width + kLine), width)
        .copy_(pictures[i]);
  }
  return sheet;
}

io::Image sheet_image(const Tensor& pictures, std::int64_t columns) {
  const Tensor sheet = (pictures.dim() == 3 ? pictures : picture_sheet(pictures, columns)).contiguous();
  io::Image image{sheet.size(1), sheet.size(0), {}};
  image.rgb.assign(sheet.const_data_ptr<std::uint8_t>(), sheet.const_data_ptr<std::uint8_t>() + sheet.numel());
  return image;
}

}  // namespace moh::generate
