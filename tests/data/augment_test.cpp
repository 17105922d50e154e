#include "moh/data/augment.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/base/error_of.h"

namespace moh::data {
namespace {

using test::error_of;

Image noise(std::int64_t width, std::int64_t height, std::uint64_t seed) {
  Random random(seed);
  Image image{width, height, {}};
  for (std::int64_t i = 0; i < width * height * 3; ++i)
    image.rgb.push_back(static_cast<std::uint8_t>(random.below(256)));
  return image;
}

Image constant(std::int64_t width, std::int64_t height, std::uint8_t value) {
  return {width, height, std::vector<std::uint8_t>(static_cast<std::size_t>(width * height * 3), value)};
}

int largest_difference(const Image& a, const Image& b) {
  EXPECT_EQ(a.rgb.size(), b.rgb.size());
  int largest = 0;
  for (std::size_t i = 0; i < a.rgb.size(); ++i) largest = std::max(largest, std::abs(int{a.rgb[i]} - int{b.rgb[i]}));
  return largest;
}

// The filter written anew, straight from its definition, in one step without rounding between the passes.
double cubic(double x) {
  x = std::abs(x);
  if (x >= 2) return 0;
  return x < 1 ? 1.5 * x * x * x - 2.5 * x * x + 1 : -0.5 * x * x * x + 2.5 * x * x - 4 * x + 2;
}
double resized_value(const Image& image, const Box& box, std::int64_t width, std::int64_t height, std::int64_t x,
                     std::int64_t y, int channel) {
  const double scale_x = box.width / static_cast<double>(width), scale_y = box.height / static_cast<double>(height);
  const double center_x = box.left + (static_cast<double>(x) + 0.5) * scale_x;
  const double center_y = box.top + (static_cast<double>(y) + 0.5) * scale_y;
  double sum = 0, weights = 0;
  for (std::int64_t j = 0; j < image.height; ++j) {
    const double wy = cubic((static_cast<double>(j) + 0.5 - center_y) / std::max(scale_y, 1.0));
    if (wy == 0) continue;
    for (std::int64_t i = 0; i < image.width; ++i) {
      const double w = wy * cubic((static_cast<double>(i) + 0.5 - center_x) / std::max(scale_x, 1.0));
      sum += w * image.rgb[(j * image.width + i) * 3 + channel];
      weights += w;
    }
  }
  return std::clamp(sum / weights, 0.0, 255.0);
}

TEST(Resize, IsBicubicWithAntialiasing) {
  Image image = noise(23, 17, 1);
  for (auto& value : image.rgb) value = static_cast<std::uint8_t>(80 + value / 4);  // nothing is clamped on the way
  const struct {
    Box box;
    std::int64_t width, height;
  } kCases[] = {
      {{0, 0, 23, 17}, 9, 5}, {{0, 0, 23, 17}, 40, 33}, {{3.5, 2.25, 11, 9.5}, 8, 16}, {{0, 0, 23, 17}, 23, 17}};
  for (const auto& [box, width, height] : kCases) {
    const Image out = resize(image, box, width, height);
    for (std::int64_t y = 0; y < height; ++y) {
      for (std::int64_t x = 0; x < width; ++x) {
        for (int c = 0; c < 3; ++c) {
          // Rounded twice, between the passes and after.
          EXPECT_NEAR(out.rgb[(y * width + x) * 3 + c], resized_value(image, box, width, height, x, y, c), 1.3);
        }
      }
    }
  }
  EXPECT_EQ(largest_difference(resize(image, {0, 0, 23, 17}, 23, 17), image), 0);
  EXPECT_EQ(largest_difference(resize(constant(30, 20, 77), {0, 0, 30, 20}, 7, 11), constant(7, 11, 77)), 0);
}

TEST(Crop, EvaluationTakesTheMiddle) {
  const Image wide = resize_shorter_side(noise(50, 20, 2), 10);
  EXPECT_EQ(wide.width, 25);
  EXPECT_EQ(wide.height, 10);
  Image image = constant(9, 5, 0);
  for (std::int64_t y = 0; y < 5; ++y) image.rgb[(y * 9 + 4) * 3] = 200;
  const Image middle = center_crop(image, 5);
  EXPECT_EQ(middle.rgb[2 * 3], 200);
  const Image beyond = crop(image, -1, -1, 3, 3, {1, 2, 3});
  EXPECT_EQ(beyond.rgb[0], 1);
  EXPECT_EQ(beyond.rgb[2], 3);
  PictureFormat format;
  format.size = 16;
  const Image seen = evaluation_picture(noise(40, 30, 3), format);
  EXPECT_EQ(seen.width, 16);
  EXPECT_EQ(seen.height, 16);
  Image mirrored = image;
  flip_horizontally(mirrored);
  flip_horizontally(mirrored);
  EXPECT_EQ(largest_difference(mirrored, image), 0);
}

TEST(RandAugment, OperationsDoWhatTheirNamesSay) {
  const std::array<std::uint8_t, 3> fill = {10, 20, 30};
  const Image image = noise(12, 10, 4);
  const auto& names = randaugment_names();
  ASSERT_EQ(names.size(), 15u);
  const auto apply = [&](const std::string& name, double magnitude, bool negative = false, const Image* on = nullptr) {
    const auto place = static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin());
    return randaugment_apply(on != nullptr ? *on : image, place, magnitude, negative, fill);
  };
  // Strength 0 changes nothing where strength means anything.
  for (const char* name : {"Rotate", "Solarize", "SolarizeAdd", "Color", "Contrast", "Brightness", "Sharpness",
                           "ShearX", "ShearY", "TranslateX", "TranslateY"}) {
    EXPECT_EQ(largest_difference(apply(name, 0), image), 0) << name;
    EXPECT_GT(largest_difference(apply(name, 9), image), 0) << name;
  }
  const Image inverted = apply("Invert", 5);
  for (std::size_t i = 0; i < image.rgb.size(); ++i) EXPECT_EQ(inverted.rgb[i], 255 - image.rgb[i]);
  const Image posterized = apply("Posterize", 5);  // two bits stay
  for (std::size_t i = 0; i < image.rgb.size(); ++i) EXPECT_EQ(posterized.rgb[i], image.rgb[i] & 0xc0);
  const Image solarized = apply("Solarize", 5);
  for (std::size_t i = 0; i < image.rgb.size(); ++i) {
    EXPECT_EQ(solarized.rgb[i], image.rgb[i] < 128 ? image.rgb[i] : 255 - image.rgb[i]);
  }
  const Image brighter = apply("Brightness", 10);
  for (std::size_t i = 0; i < image.rgb.size(); ++i) {
    EXPECT_EQ(brighter.rgb[i], std::min(255, static_cast<int>(std::lround(1.9 * image.rgb[i]))));
  }
  Image narrow = image;
  for (auto& value : narrow.rgb) value = static_cast<std::uint8_t>(100 + value / 8);
  const Image stretched = apply("AutoContrast", 0, false, &narrow);
  EXPECT_EQ(*std::min_element(stretched.rgb.begin(), stretched.rgb.end()), 0);
  EXPECT_EQ(*std::max_element(stretched.rgb.begin(), stretched.rgb.end()), 255);
  // A ramp of every value is spread evenly already.
  Image ramp = constant(256, 4, 0);
  for (std::size_t i = 0; i < ramp.rgb.size(); ++i) ramp.rgb[i] = static_cast<std::uint8_t>(i / 3 % 256);
  EXPECT_LE(largest_difference(apply("Equalize", 0, false, &ramp), ramp), 1);
  // A shift by a whole number of pixels moves them; what comes in from outside is the fill.
  const Image square = noise(20, 20, 5);
  const Image shifted = apply("TranslateX", 10, false, &square);  // 0.45 * 20 = 9
  for (std::int64_t y = 0; y < 20; ++y) {
    for (std::int64_t x = 0; x < 20; ++x) {
      for (int c = 0; c < 3; ++c) {
        const std::uint8_t expected = x + 9 < 20 ? square.rgb[(y * 20 + x + 9) * 3 + c] : fill[c];
        EXPECT_EQ(shifted.rgb[(y * 20 + x) * 3 + c], expected);
      }
    }
  }
  EXPECT_NE(error_of([&] { randaugment_apply(image, 15, 1, false, fill); }), "");
}

TEST(Mix, TargetsSumToOneAndFollowThePixels) {
  AugmentConfig config;
  Random random(6);
  const std::int64_t size = 8, count = 5, pixels = 3 * size * size;
  int cuts = 0, blends = 0;
  for (int round = 0; round < 200; ++round) {
    const Mix mix = draw_mix(config, size, random);
    ASSERT_GE(mix.share, 0);
    ASSERT_LE(mix.share, 1);
    (mix.cuts() ? cuts : blends) += 1;
    std::vector<float> pictures;  // picture i is full of i
    for (std::int64_t i = 0; i < count; ++i) pictures.insert(pictures.end(), pixels, static_cast<float>(i));
    mix_batch(pictures.data(), count, size, mix);
    const auto targets = mixed_targets({0, 1, 2, 3, 4}, 5, mix, 0.1);
    for (std::int64_t i = 0; i < count; ++i) {
      const double mean =
          std::accumulate(&pictures[i * pixels], &pictures[i * pixels] + pixels, 0.0) / static_cast<double>(pixels);
      EXPECT_NEAR(mean, static_cast<double>(i) * mix.share + static_cast<double>(4 - i) * (1 - mix.share), 1e-5);
      EXPECT_NEAR(std::accumulate(&targets[i * 5], &targets[i * 5] + 5, 0.0), 1, 1e-6);
      const double own = i == 2 ? 0.9 : 0.9 * mix.share;
      EXPECT_NEAR(targets[i * 5 + i], own + 0.02, 1e-6);
    }
  }
  EXPECT_GT(cuts, 50);
  EXPECT_GT(blends, 50);
}

TEST(Erase, ReplacesOneRectangle) {
  AugmentConfig config;
  config.erase = 1;
  const std::int64_t size = 20;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    std::vector<float> picture(3 * size * size, 100.0F);
    Random random(seed);
    erase_rectangle(picture.data(), size, config, random);
    std::int64_t erased = 0;
    for (std::int64_t i = 0; i < size * size; ++i) {
      const bool gone = picture[i] != 100.0F;
      erased += gone;
      for (int c = 1; c < 3; ++c) EXPECT_EQ(picture[c * size * size + i] != 100.0F, gone);
    }
    EXPECT_GT(erased, 0);
    EXPECT_LE(erased, size * size / 3 + size);
  }
}

TEST(Random, HasTheMomentsOfItsDistributions) {
  Random random(7);
  double normal = 0, square = 0, beta = 0, beta_square = 0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    const double x = random.normal(), b = random.beta(0.8, 0.8);
    normal += x / kDraws;
    square += x * x / kDraws;
    beta += b / kDraws;
    beta_square += b * b / kDraws;
  }
  EXPECT_NEAR(normal, 0, 0.03);
  EXPECT_NEAR(square, 1, 0.05);
  EXPECT_NEAR(beta, 0.5, 0.01);
  EXPECT_NEAR(beta_square - 0.25, 0.25 / (2 * 0.8 + 1), 0.005);  // variance of Beta(a, a) is 1 / (4 (2a + 1))
}

TEST(Augment, TheSameSeedGivesTheSamePicture) {
  const AugmentConfig config;
  PictureFormat format;
  format.size = 24;
  const Image image = noise(60, 45, 8);
  const auto make = [&](std::uint64_t number) {
    Random random(9, number);
    return training_picture(image, format, config, random);
  };
  EXPECT_EQ(largest_difference(make(3), make(3)), 0);
  EXPECT_GT(largest_difference(make(3), make(4)), 0);
  EXPECT_EQ(make(5).width, 24);
  AugmentConfig wrong;
  wrong.crop = "round";
  EXPECT_NE(error_of([&] { check_augment_config(wrong); }).find("resized, padded or center"), std::string::npos);
}

}  // namespace
}  // namespace moh::data
