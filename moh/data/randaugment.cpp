// The operations of RandAugment (arXiv:1909.13719) with the strengths usual for DeiT: every one grows with the
// magnitude.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "moh/base/error.h"
#include "moh/data/augment.h"

namespace moh::data {
namespace {

using Fill = std::array<std::uint8_t, 3>;
using Table = std::array<std::array<std::uint8_t, 256>, 3>;

template <class F>
Table table_of(F&& value) {
  Table table;
  for (int i = 0; i < 256; ++i) {
    const auto v = static_cast<std::uint8_t>(std::clamp<int>(value(i), 0, 255));
    for (auto& channel : table) channel[i] = v;
  }
  return table;
}

std::array<std::array<std::int64_t, 256>, 3> histogram(const Image& image) {
  std::array<std::array<std::int64_t, 256>, 3> counts{};
  for (std::size_t i = 0; i < image.rgb.size(); ++i) ++counts[i % 3][image.rgb[i]];
  return counts;
}

// Each channel stretched to 0..255.
Table auto_contrast(const Image& image) {
  Table table;
  const auto counts = histogram(image);
  for (int c = 0; c < 3; ++c) {
    int low = 0, high = 255;
    while (low < 255 && counts[c][low] == 0) ++low;
    while (high > 0 && counts[c][high] == 0) --high;
    for (int i = 0; i < 256; ++i) {
      const double stretched = high > low ? (i - low) * 255.0 / (high - low) : i;
      table[c][i] = static_cast<std::uint8_t>(std::clamp(stretched, 0.0, 255.0));
    }
  }
  return table;
}

// Each channel's values spread evenly, as Pillow does.
Table equalize(const Image& image) {
  Table table;
  const auto counts = histogram(image);
  for (int c = 0; c < 3; ++c) {
    std::int64_t total = 0, last = 0, different = 0;
    for (const std::int64_t count : counts[c]) {
      if (count == 0) continue;
      total += count;
      last = count;
      ++different;
    }
    const std::int64_t step = (total - last) / 255;
    std::int64_t sum = step / 2;
    for (int i = 0; i < 256; ++i) {
      table[c][i] =
          static_cast<std::uint8_t>(different <= 1 || step == 0 ? i : std::min<std::int64_t>(255, sum / step));
      sum += counts[c][i];
    }
  }
  return table;
}

double luma(const std::uint8_t* pixel) { return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]; }

Image grey(const Image& image) {
  Image out = image;
  for (std::size_t i = 0; i < out.rgb.size(); i += 3) {
    const auto value = static_cast<std::uint8_t>(std::lround(luma(&image.rgb[i])));
    out.rgb[i] = out.rgb[i + 1] = out.rgb[i + 2] = value;
  }
  return out;
}

Image uniform(const Image& image, double value) {
  return {image.width, image.height,
          std::vector<std::uint8_t>(image.rgb.size(), static_cast<std::uint8_t>(std::lround(value)))};
}

double mean_luma(const Image& image) {
  double sum = 0;
  for (std::size_t i = 0; i < image.rgb.size(); i += 3) sum += luma(&image.rgb[i]);
  return sum / static_cast<double>(image.rgb.size() / 3);
}

// 3x3 with weight 5 in the middle of 13; the border stays.
Image smoothed(const Image& image) {
  Image out = image;
  for (std::int64_t y = 1; y + 1 < image.height; ++y) {
    for (std::int64_t x = 1; x + 1 < image.width; ++x) {
      for (std::int64_t c = 0; c < 3; ++c) {
        int sum = 0;
        for (std::int64_t dy = -1; dy <= 1; ++dy) {
          for (std::int64_t dx = -1; dx <= 1; ++dx) {
            const int weight = dy == 0 && dx == 0 ? 5 : 1;
            sum += weight * image.rgb[((y + dy) * image.width + x + dx) * 3 + c];
          }
        }
        out.rgb[(y * image.width + x) * 3 + c] = static_cast<std::uint8_t>((sum + 6) / 13);
      }
    }
  }
  return out;
}

enum Operation {
  kAutoContrast,
  kEqualize,
  kInvert,
  kRotate,
  kPosterize,
  kSolarize,
  kSolarizeAdd,
  kColor,
  kContrast,
  kBrightness,
  kSharpness,
  kShearX,
  kShearY,
  kTranslateX,
  kTranslateY
};

}  // namespace

const std::vector<std::string>& randaugment_names() {
  static const std::vector<std::string> names = {"AutoContrast", "Equalize",    "Invert", "Rotate",     "Posterize",
                                                 "Solarize",     "SolarizeAdd", "Color",  "Contrast",   "Brightness",
                                                 "Sharpness",    "ShearX",      "ShearY", "TranslateX", "TranslateY"};
  return names;
}

Image randaugment_apply(const Image& image, std::size_t operation, double magnitude, bool negative, const Fill& fill) {
  MOH_CHECK(operation < randaugment_names().size(), "[augment] there is no operation ", operation);
  const double level = std::clamp(magnitude, 0.0, 10.0) / 10, sign = negative ? -1 : 1;
  const double strength = std::max(0.1, 1 + sign * 0.9 * level);  // of the blending ones: 1 changes nothing
  const auto width = static_cast<double>(image.width), height = static_cast<double>(image.height);
  Image out = image;
  switch (static_cast<Operation>(operation)) {
    case kAutoContrast:
      apply_table(out, auto_contrast(image));
      return out;
    case kEqualize:
      apply_table(out, equalize(image));
      return out;
    case kInvert:
      apply_table(out, table_of([](int v) { return 255 - v; }));
      return out;
    case kRotate: {
      const double angle = sign * level * 30 * std::numbers::pi / 180, c = std::cos(angle), s = std::sin(angle);
      return affine(
          image, {c, s, width / 2 - c * width / 2 - s * height / 2, -s, c, height / 2 + s * width / 2 - c * height / 2},
          fill);
    }
    case kPosterize: {  // keeps 4 down to 0 bits
      const int bits = std::max(0, 4 - static_cast<int>(level * 4)), mask = bits == 0 ? 0 : 0xff << (8 - bits);
      apply_table(out, table_of([&](int v) { return v & mask & 0xff; }));
      return out;
    }
    case kSolarize: {
      const int threshold = 256 - static_cast<int>(level * 256);
      apply_table(out, table_of([&](int v) { return v < threshold ? v : 255 - v; }));
      return out;
    }
    case kSolarizeAdd: {
      const int add = static_cast<int>(level * 110);
      apply_table(out, table_of([&](int v) { return v < 128 ? v + add : v; }));
      return out;
    }
    case kColor:
      blend(out, grey(image), strength);
      return out;
    case kContrast:
      blend(out, uniform(image, mean_luma(image)), strength);
      return out;
    case kBrightness:
      blend(out, uniform(image, 0), strength);
      return out;
    case kSharpness:
      blend(out, smoothed(image), strength);
      return out;
    case kShearX:
      return affine(image, {1, sign * level * 0.3, 0, 0, 1, 0}, fill);
    case kShearY:
      return affine(image, {1, 0, 0, sign * level * 0.3, 1, 0}, fill);
    case kTranslateX:
      return affine(image, {1, 0, sign * level * 0.45 * width, 0, 1, 0}, fill);
    case kTranslateY:
      return affine(image, {1, 0, 0, 0, 1, sign * level * 0.45 * height}, fill);
  }
  return out;
}

}  // namespace moh::data
