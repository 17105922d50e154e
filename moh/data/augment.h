// Augmentation of training pictures as DeiT's recipe has it, which the paper follows: random resized crop, flip,
// RandAugment (two of fifteen operations), random erasing; Mixup or CutMix of a batch. Torch-free: pictures in,
// floats out.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "moh/data/image_ops.h"
#include "moh/data/random.h"

namespace moh::data {

struct AugmentConfig {
  std::string crop = "resized";  // "padded": shifted by up to an eighth, for small pictures; "center": as in evaluation
  double crop_min = 0.08;        // smallest share of the picture's area that a resized crop keeps
  double mirror = 0.5;           // chance of a horizontal flip
  std::int64_t randaugment_ops = 2;
  double randaugment_magnitude = 9, randaugment_std = 0.5;
  double erase = 0.25;
  double mixup = 0.8, cutmix = 1.0;  // parameters of their Beta distributions; 0: not used
  double label_smoothing = 0.1;
  std::int64_t repeats = 3;  // copies of a picture in an epoch, each augmented anew; fewer different pictures

  template <class V>
  void fields(V& visit) {
    visit("crop", crop, "resized, padded (shifted by up to an eighth) or center");
    visit("crop_min", crop_min, "smallest share of the area that a resized crop keeps");
    visit("mirror", mirror, "chance of a horizontal flip");
    visit("randaugment_ops", randaugment_ops, "operations of RandAugment tried on each picture; 0: none");
    visit("randaugment_magnitude", randaugment_magnitude, "mean strength, 0 to 10");
    visit("randaugment_std", randaugment_std, "its standard deviation");
    visit("erase", erase, "chance that a rectangle is replaced by noise");
    visit("mixup", mixup, "Beta parameter of Mixup; 0: none");
    visit("cutmix", cutmix, "Beta parameter of CutMix; 0: none");
    visit("label_smoothing", label_smoothing, "share of the target spread over all classes");
    visit("repeats", repeats, "copies of a picture in an epoch, which has as many fewer different ones");
  }
};

void check_augment_config(const AugmentConfig& config);

// Preprocessing of one picture as floats [3, size, size], channel by channel.
struct PictureFormat {
  std::int64_t size = 224;
  std::array<double, 3> mean = {0.485, 0.456, 0.406}, std = {0.229, 0.224, 0.225};
  double crop = 0.875;  // evaluation: share of the resized picture that the centre crop keeps
};

// Evaluation: shorter side to size / crop, centre crop.
Image evaluation_picture(const Image& image, const PictureFormat& format);
// Training: crop, flip, RandAugment.
Image training_picture(const Image& image, const PictureFormat& format, const AugmentConfig& config, Random& random);

// (value / 255 - mean) / std into out[3 * size * size].
void normalize_picture(const Image& image, const PictureFormat& format, float* out);
// Replaces one rectangle (2 % to a third of the area) by normal noise, with the configured chance.
void erase_rectangle(float* picture, std::int64_t size, const AugmentConfig& config, Random& random);

// How a batch is mixed with itself in reverse order: Mixup of everything (`box` empty) or CutMix of a rectangle.
struct Mix {
  double share = 1;  // of the picture itself; 1 - share of its partner
  std::int64_t left = 0, top = 0, right = 0, bottom = 0;
  bool cuts() const { return right > left && bottom > top; }
};
Mix draw_mix(const AugmentConfig& config, std::int64_t size, Random& random);
// pictures [count, 3, size, size] in place.
void mix_batch(float* pictures, std::int64_t count, std::int64_t size, const Mix& mix);
// Targets [count, classes]: smoothed, mixed labels. Rows sum to 1.
std::vector<float> mixed_targets(const std::vector<std::int64_t>& labels, std::int64_t classes, const Mix& mix,
                                 double smoothing);

// The operations of RandAugment by name, for tests: magnitude 0 to 10.
const std::vector<std::string>& randaugment_names();
Image randaugment_apply(const Image& image, std::size_t operation, double magnitude, bool negative,
                        const std::array<std::uint8_t, 3>& fill);

}  // namespace moh::data
