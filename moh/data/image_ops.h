// Operations on 8-bit RGB pictures that training and evaluation are made of. Torch-free.
#pragma once

#include <array>

#include "moh/io/image.h"

namespace moh::data {

using io::Image;

struct Box {  // a part of a picture, in pixels; edges may be fractions
  double left = 0, top = 0, width = 0, height = 0;
};

// Bicubic (a = -1/2) with a support that grows when shrinking, in two passes rounded to 8 bits: as Pillow resizes.
Image resize(const Image& image, const Box& box, std::int64_t width, std::int64_t height);
// The shorter side becomes `side`, the other one in proportion, rounded down.
Image resize_shorter_side(const Image& image, std::int64_t side);

// A part of the picture, `fill` where it reaches beyond.
Image crop(const Image& image, std::int64_t left, std::int64_t top, std::int64_t width, std::int64_t height,
           const std::array<std::uint8_t, 3>& fill = {0, 0, 0});
Image center_crop(const Image& image, std::int64_t size);
void flip_horizontally(Image& image);

// Output pixel (x, y) is taken from (a x + b y + c, d x + e y + f) of the input, pixel centres at halves, bilinear,
// `fill` beyond the edge.
Image affine(const Image& image, const std::array<double, 6>& matrix, const std::array<std::uint8_t, 3>& fill);

// Every value through a table per channel.
void apply_table(Image& image, const std::array<std::array<std::uint8_t, 256>, 3>& table);
// factor * image + (1 - factor) * other, clamped.
void blend(Image& image, const Image& other, double factor);

}  // namespace moh::data
