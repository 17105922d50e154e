// Training of a MoH-ViT or its dense twin on a folder of pictures, in the way of the paper (spec, section 2): augmented
// pictures, Mixup or CutMix, soft targets, drop path.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>

#include "moh/data/augment.h"
#include "moh/data/image_folder.h"
#include "moh/eval/image_classification.h"
#include "moh/models/vit.h"
#include "moh/train/task.h"

namespace moh::train {

struct ImageTaskOptions {
  std::uint64_t seed = 0;
  std::optional<at::ScalarType> autocast;
  bool recompute = false;  // see models::VitInput
  data::AugmentConfig augment;
  int workers = 2;                // threads that read and augment pictures
  std::int64_t valid_images = 0;  // of the validation folder, spread over it; 0: all
};

class ImageTask : public Task {
 public:
  ImageTask(models::Vit model, data::ImageFolder train, std::optional<data::ImageFolder> valid,
            ImageTaskOptions options);
  ~ImageTask() override;

  const io::NamedTensors& parameters() const override { return model_.parameters(); }
  std::vector<bool> decays() const override { return model_.decays(); }
  std::string unit() const override { return "images"; }
  BatchLoss loss(std::int64_t position, std::int64_t count) override;
  std::optional<Validation> validate() override;
  void save_model(const std::string& folder) const override;

  const models::Vit& model() const { return model_; }
  // Pictures that could not be read, each counted once; their errors.
  std::vector<std::string> skipped() const;
  // The picture that is example `position` of training: repeats of one picture follow one another, every epoch has its
  // own order.
  std::int64_t picture_at(std::int64_t position);

 private:
  struct Loader;
  models::Vit model_;
  data::ImageFolder train_;
  std::optional<data::ImageFolder> valid_;
  ImageTaskOptions options_;
  std::unique_ptr<Loader> loader_;
};

}  // namespace moh::train
