#include "moh/data/image_ops.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "moh/base/error.h"

namespace moh::data {
namespace {

std::uint8_t to_byte(double value) { return static_cast<std::uint8_t>(std::clamp(value + 0.5, 0.0, 255.0)); }

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// For each output position: first input position and weights that sum to 1.
struct Filter {
  std::vector<std::int64_t> first;
  std::vector<std::vector<float>> weights;
};

Filter make_filter(double begin, double extent, std::int64_t in, std::int64_t out) {
  const double scale = extent / static_cast<double>(out), stretch = std::max(scale, 1.0), support = 2 * stretch;
  Filter filter;
  for (std::int64_t i = 0; i < out; ++i) {
    const double center = begin + (static_cast<double>(i) + 0.5) * scale;
    const auto low = std::max<std::int64_t>(0, static_cast<std::int64_t>(center - support + 0.5));
    const auto high = std::min<std::int64_t>(in, static_cast<std::int64_t>(center + support + 0.5));
    std::vector<double> weights;
    double sum = 0;
    for (std::int64_t j = low; j < high; ++j) {
      weights.push_back(cubic((static_cast<double>(j) - center + 0.5) / stretch));
      sum += weights.back();
    }
    filter.first.push_back(low);
    auto& normalised = filter.weights.emplace_back();
    for (const double weight : weights) normalised.push_back(static_cast<float>(weight / sum));
  }
  return filter;
}

}  // namespace

Image resize(const Image& image, const Box& box, std::int64_t width, std::int64_t height) {
  MOH_CHECK(width > 0 && height > 0 && box.width > 0 && box.height > 0, "[image] cannot resize to ", width, " x ",
            height);
  const Filter across = make_filter(box.left, box.width, image.width, width);
  const Filter down = make_filter(box.top, box.height, image.height, height);
  const std::int64_t first_row = down.first.front();
  const std::int64_t last_row = down.first.back() + static_cast<std::int64_t>(down.weights.back().size());
  std::vector<std::uint8_t> middle(static_cast<std::size_t>((last_row - first_row) * width * 3));
  for (std::int64_t y = first_row; y < last_row; ++y) {
    const std::uint8_t* const from = image.rgb.data() + y * image.width * 3;
    std::uint8_t* to = middle.data() + (y - first_row) * width * 3;
    for (std::int64_t x = 0; x < width; ++x, to += 3) {
      float sum[3] = {0, 0, 0};
      const std::uint8_t* pixel = from + across.first[x] * 3;
      for (const float weight : across.weights[x]) {
        for (int c = 0; c < 3; ++c) sum[c] += weight * pixel[c];
        pixel += 3;
      }
      for (int c = 0; c < 3; ++c) to[c] = to_byte(sum[c]);
    }
  }
  Image out{width, height, std::vector<std::uint8_t>(static_cast<std::size_t>(width * height * 3))};
  std::vector<float> row(static_cast<std::size_t>(width * 3));
  for (std::int64_t y = 0; y < height; ++y) {
    std::fill(row.begin(), row.end(), 0.0F);
    for (std::size_t k = 0; k < down.weights[y].size(); ++k) {
      const float weight = down.weights[y][k];
      const std::uint8_t* const from =
          middle.data() + (down.first[y] - first_row + static_cast<std::int64_t>(k)) * width * 3;
      for (std::size_t x = 0; x < row.size(); ++x) row[x] += weight * from[x];
    }
    std::uint8_t* const to = out.rgb.data() + y * width * 3;
    for (std::size_t x = 0; x < row.size(); ++x) to[x] = to_byte(row[x]);
  }
  return out;
}

Image resize_shorter_side(const Image& image, std::int64_t side) {
  const bool upright = image.height > image.width;
  const std::int64_t shorter = upright ? image.width : image.height, longer = upright ? image.height : image.width;
  const std::int64_t other = std::max(side, side * longer / shorter);
  const std::int64_t width = upright ? side : other, height = upright ? other : side;
  if (width == image.width && height == image.height) return image;
  return resize(image, {0, 0, static_cast<double>(image.width), static_cast<double>(image.height)}, width, height);
}

Image crop(const Image& image, std::int64_t left, std::int64_t top, std::int64_t width, std::int64_t height,
           const std::array<std::uint8_t, 3>& fill) {
  Image out{width, height, {}};
  out.rgb.reserve(static_cast<std::size_t>(width * height * 3));
  for (std::int64_t y = top; y < top + height; ++y) {
    for (std::int64_t x = left; x < left + width; ++x) {
      const bool inside = y >= 0 && y < image.height && x >= 0 && x < image.width;
      const std::uint8_t* const pixel = inside ? image.rgb.data() + (y * image.width + x) * 3 : fill.data();
      out.rgb.insert(out.rgb.end(), pixel, pixel + 3);
    }
  }
  return out;
}

Image center_crop(const Image& image, std::int64_t size) {
  if (image.width == size && image.height == size) return image;
  return crop(image, std::lround(static_cast<double>(image.width - size) / 2),
              std::lround(static_cast<double>(image.height - size) / 2), size, size);
}

void flip_horizontally(Image& image) {
  for (std::int64_t y = 0; y < image.height; ++y) {
    std::uint8_t* const row = image.rgb.data() + y * image.width * 3;
    for (std::int64_t left = 0, right = image.width - 1; left < right; ++left, --right) {
      std::swap_ranges(row + left * 3, row + left * 3 + 3, row + right * 3);
    }
  }
}

Image affine(const Image& image, const std::array<double, 6>& m, const std::array<std::uint8_t, 3>& fill) {
  Image out{image.width, image.height, std::vector<std::uint8_t>(image.rgb.size())};
  const auto width = static_cast<double>(image.width), height = static_cast<double>(image.height);
  std::uint8_t* to = out.rgb.data();
  for (std::int64_t y = 0; y < image.height; ++y) {
    for (std::int64_t x = 0; x < image.width; ++x, to += 3) {
      const double u = static_cast<double>(x) + 0.5, v = static_cast<double>(y) + 0.5;
      const double from_x = m[0] * u + m[1] * v + m[2], from_y = m[3] * u + m[4] * v + m[5];
      if (from_x < 0 || from_x >= width || from_y < 0 || from_y >= height) {
        std::copy(fill.begin(), fill.end(), to);
        continue;
      }
      const double left = std::floor(from_x - 0.5), top = std::floor(from_y - 0.5);
      const double right_share = from_x - 0.5 - left, bottom_share = from_y - 0.5 - top;
      const auto at = [&](double px, double py) {
        const auto cx = static_cast<std::int64_t>(std::clamp(px, 0.0, width - 1));
        const auto cy = static_cast<std::int64_t>(std::clamp(py, 0.0, height - 1));
        return image.rgb.data() + (cy * image.width + cx) * 3;
      };
      const std::uint8_t *a = at(left, top), *b = at(left + 1, top), *c = at(left, top + 1), *d = at(left + 1, top + 1);
      for (int i = 0; i < 3; ++i) {
        const double upper = a[i] + (b[i] - a[i]) * right_share, lower = c[i] + (d[i] - c[i]) * right_share;
        to[i] = to_byte(upper + (lower - upper) * bottom_share);
      }
    }
  }
  return out;
}

void apply_table(Image& image, const std::array<std::array<std::uint8_t, 256>, 3>& table) {
  for (std::size_t i = 0; i < image.rgb.size(); ++i) image.rgb[i] = table[i % 3][image.rgb[i]];
}

void blend(Image& image, const Image& other, double factor) {
  for (std::size_t i = 0; i < image.rgb.size(); ++i) {
    image.rgb[i] = to_byte(other.rgb[i] + factor * (image.rgb[i] - other.rgb[i]));
  }
}

}  // namespace moh::data
