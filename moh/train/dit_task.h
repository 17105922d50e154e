// Training a DiT to denoise pictures or latents: the loss of improved DDPM at a random step, plus load balance.
//
// Everything random about an example (its mirror image, latent, step, noise, whether its label is hidden) follows from
// the seed and the example's number, so that a resumed run goes on to the bit.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "moh/data/epoch_order.h"
#include "moh/data/picture_source.h"
#include "moh/diffusion/schedule.h"
#include "moh/models/dit.h"
#include "moh/train/task.h"

namespace moh::train {

struct DitTaskOptions {
  std::uint64_t seed = 0;
  std::optional<at::ScalarType> autocast;
  bool recompute = false;              // see models::Dit::forward
  bool flip = true;                    // mirror half of the examples
  std::int64_t valid_examples = 1024;  // of the validation data
  std::int64_t valid_batch = 64;
  std::int64_t illustrate_every = 0;  // steps between sheets of samples; 0: none
  // Makes a picture of the model's present samples; hears the model to use (the averaged one, if there is one).
  std::function<void(const models::Dit& model, const std::string& folder, std::int64_t step)> illustrate;
};

class DitTask : public Task {
 public:
  DitTask(models::Dit model, std::shared_ptr<const data::PictureSource> train,
          std::shared_ptr<const data::PictureSource> valid, DitTaskOptions options);

  const io::NamedTensors& parameters() const override { return model_.parameters(); }
  // The paper decays nothing: --weight-decay is 0.
  std::vector<bool> decays() const override { return model_.decays(); }
  std::string unit() const override { return "images"; }
  BatchLoss loss(std::int64_t position, std::int64_t count) override;
  std::optional<Validation> validate() override;
  void save_model(const std::string& folder) const override;
  std::int64_t illustrate_every() const override { return options_.illustrate_every; }
  void illustrate(const std::string& folder, std::int64_t step, const io::NamedTensors* averaged) const override;

  const models::Dit& model() const { return model_; }

 private:
  struct Batch {
    at::Tensor x_start, noise, t, labels;
  };
  Batch batch(const data::PictureSource& source, const std::vector<std::int64_t>& indices, std::uint64_t seed,
              std::int64_t position, bool training) const;
  // `share`: of the examples whose mean is wanted, the batch's.
  BatchLoss loss_of(const Batch& batch, double share) const;

  models::Dit model_;
  std::shared_ptr<const data::PictureSource> train_, valid_;
  DitTaskOptions options_;
  diffusion::Schedule schedule_;
  data::EpochOrder order_;
};

}  // namespace moh::train
