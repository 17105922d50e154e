#include "moh/data/augment.h"

#include <algorithm>
#include <cmath>

#include "moh/base/error.h"

namespace moh::data {
namespace {

// A box of random area and shape, from which the picture is resized; the middle of the picture when none fits.
Image random_resized_crop(const Image& image, std::int64_t size, double smallest, Random& random) {
  constexpr double kLowest = 3.0 / 4, kHighest = 4.0 / 3;
  const auto width = static_cast<double>(image.width), height = static_cast<double>(image.height);
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double area = width * height * random.uniform(smallest, 1);
    const double ratio = std::exp(random.uniform(std::log(kLowest), std::log(kHighest)));
    const auto w = std::lround(std::sqrt(area * ratio)), h = std::lround(std::sqrt(area / ratio));
    if (w <= 0 || h <= 0 || w > image.width || h > image.height) continue;
    const auto left = random.below(image.width - w + 1), top = random.below(image.height - h + 1);
    return resize(image,
                  {static_cast<double>(left), static_cast<double>(top), static_cast<double>(w), static_cast<double>(h)},
                  size, size);
  }
  double w = width, h = height;
  if (w / h < kLowest) h = w / kLowest;
  if (w / h > kHighest) w = h * kHighest;
  return resize(image, {(width - w) / 2, (height - h) / 2, w, h}, size, size);
}

Image padded_crop(const Image& image, std::int64_t size, Random& random) {
  const Image fitting = center_crop(resize_shorter_side(image, size), size);
  const std::int64_t reach = size / 8;
  const std::int64_t left = random.below(2 * reach + 1) - reach, top = random.below(2 * reach + 1) - reach;
  return crop(fitting, left, top, size, size);
}

}  // namespace

void check_augment_config(const AugmentConfig& config) {
  MOH_CHECK(config.crop == "resized" || config.crop == "padded" || config.crop == "center",
            "[augment] crop must be resized, padded or center, got ", config.crop);
  const auto share = [](const char* name, double value) {
    MOH_CHECK(value >= 0 && value <= 1, "[augment] ", name, " must be in 0..1, got ", value);
  };
  share("crop_min", config.crop_min);
  share("mirror", config.mirror);
  share("erase", config.erase);
  share("label_smoothing", config.label_smoothing);
  MOH_CHECK(config.randaugment_ops >= 0 && config.randaugment_ops <= 15,
            "[augment] randaugment_ops must be in 0..15, got ", config.randaugment_ops);
  MOH_CHECK(config.mixup >= 0 && config.cutmix >= 0 && config.randaugment_std >= 0 && config.randaugment_magnitude >= 0,
            "[augment] mixup, cutmix and RandAugment's strengths must be at least 0");
  MOH_CHECK(config.repeats >= 1, "[augment] repeats must be at least 1, got ", config.repeats);
}

Image evaluation_picture(const Image& image, const PictureFormat& format) {
  const auto side = static_cast<std::int64_t>(static_cast<double>(format.size) / format.crop);
  return center_crop(resize_shorter_side(image, side), format.size);
}

Image training_picture(const Image& image, const PictureFormat& format, const AugmentConfig& config, Random& random) {
  Image picture = config.crop == "resized"  ? random_resized_crop(image, format.size, config.crop_min, random)
                  : config.crop == "padded" ? padded_crop(image, format.size, random)
                                            : evaluation_picture(image, format);
  if (random.chance(config.mirror)) flip_horizontally(picture);
  std::array<std::uint8_t, 3> fill;
  for (int c = 0; c < 3; ++c) fill[c] = static_cast<std::uint8_t>(std::clamp(format.mean[c] * 255 + 0.5, 0.0, 255.0));
  for (std::int64_t i = 0; i < config.randaugment_ops; ++i) {
    const auto operation =
        static_cast<std::size_t>(random.below(static_cast<std::int64_t>(randaugment_names().size())));
    const double magnitude = config.randaugment_magnitude + config.randaugment_std * random.normal();
    const bool negative = random.chance(0.5), applied = random.chance(0.5);
    if (applied) picture = randaugment_apply(picture, operation, magnitude, negative, fill);
  }
  return picture;
}

void normalize_picture(const Image& image, const PictureFormat& format, float* out) {
  const std::int64_t pixels = image.width * image.height;
  for (int c = 0; c < 3; ++c) {
    std::array<float, 256> table;
    for (int v = 0; v < 256; ++v) table[v] = static_cast<float>((v / 255.0 - format.mean[c]) / format.std[c]);
    for (std::int64_t i = 0; i < pixels; ++i) out[c * pixels + i] = table[image.rgb[3 * i + c]];
  }
}

void erase_rectangle(float* picture, std::int64_t size, const AugmentConfig& config, Random& random) {
  if (!random.chance(config.erase)) return;
  constexpr double kSmallest = 0.02, kLargest = 1.0 / 3, kShape = 0.3;
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double area = static_cast<double>(size * size) * random.uniform(kSmallest, kLargest);
    const double ratio = std::exp(random.uniform(std::log(kShape), std::log(1 / kShape)));
    const auto h = std::lround(std::sqrt(area * ratio)), w = std::lround(std::sqrt(area / ratio));
    if (h <= 0 || w <= 0 || h >= size || w >= size) continue;
    const std::int64_t top = random.below(size - h + 1), left = random.below(size - w + 1);
    for (std::int64_t c = 0; c < 3; ++c) {
      for (std::int64_t y = top; y < top + h; ++y) {
        for (std::int64_t x = left; x < left + w; ++x) {
          picture[(c * size + y) * size + x] = static_cast<float>(random.normal());
        }
      }
    }
    return;
  }
}

Mix draw_mix(const AugmentConfig& config, std::int64_t size, Random& random) {
  Mix mix;
  if (config.mixup == 0 && config.cutmix == 0) return mix;
  const bool cut = config.mixup == 0 || (config.cutmix > 0 && random.chance(0.5));
  if (!cut) {
    mix.share = random.beta(config.mixup, config.mixup);
    return mix;
  }
  const double side = std::sqrt(1 - random.beta(config.cutmix, config.cutmix)) * static_cast<double>(size);
  const auto length = static_cast<std::int64_t>(side);
  const std::int64_t y = random.below(size), x = random.below(size);
  mix.top = std::max<std::int64_t>(0, y - length / 2);
  mix.bottom = std::min(size, y + length / 2);
  mix.left = std::max<std::int64_t>(0, x - length / 2);
  mix.right = std::min(size, x + length / 2);
  // By the area that the edges left.
  mix.share =
      1 - static_cast<double>((mix.bottom - mix.top) * (mix.right - mix.left)) / static_cast<double>(size * size);
  return mix;
}

void mix_batch(float* pictures, std::int64_t count, std::int64_t size, const Mix& mix) {
  if (mix.share == 1) return;
  const std::int64_t pixels = 3 * size * size;
  const auto share = static_cast<float>(mix.share);
  for (std::int64_t i = 0; i < count - 1 - i; ++i) {  // both partners at once
    float *const a = pictures + i * pixels, *const b = pictures + (count - 1 - i) * pixels;
    if (!mix.cuts()) {
      for (std::int64_t k = 0; k < pixels; ++k) {
        const float old = a[k];
        a[k] = share * old + (1 - share) * b[k];
        b[k] = share * b[k] + (1 - share) * old;
      }
      continue;
    }
    for (std::int64_t c = 0; c < 3; ++c) {
      for (std::int64_t y = mix.top; y < mix.bottom; ++y) {
        const std::int64_t row = (c * size + y) * size;
        std::swap_ranges(a + row + mix.left, a + row + mix.right, b + row + mix.left);
      }
    }
  }
}

std::vector<float> mixed_targets(const std::vector<std::int64_t>& labels, std::int64_t classes, const Mix& mix,
                                 double smoothing) {
  const auto count = static_cast<std::int64_t>(labels.size());
  const double off = smoothing / static_cast<double>(classes), on = 1 - smoothing;
  std::vector<float> targets(static_cast<std::size_t>(count * classes), static_cast<float>(off));
  for (std::int64_t i = 0; i < count; ++i) {
    targets[i * classes + labels[i]] += static_cast<float>(on * mix.share);
    targets[i * classes + labels[count - 1 - i]] += static_cast<float>(on * (1 - mix.share));
  }
  return targets;
}

}  // namespace moh::data
