#include "moh/data/picture_source.h"

#include <ATen/ATen.h>

#include "moh/base/error.h"

namespace moh::data {

PixelSource::PixelSource(at::Tensor pixels, std::vector<std::int64_t> labels, std::vector<std::string> classes)
    : pixels_(std::move(pixels)), labels_(std::move(labels)), classes_(std::move(classes)) {
  MOH_CHECK(pixels_.dim() == 4 && pixels_.scalar_type() == at::kByte &&
                pixels_.size(0) == static_cast<std::int64_t>(labels_.size()),
            "[data] pixels must be uint8 [N, C, H, W] with N labels, got ", pixels_.scalar_type(), " ", pixels_.sizes(),
            " and ", labels_.size(), " labels");
}

at::Tensor PixelSource::example(std::int64_t index, bool flip, const at::Generator&) const {
  const at::Tensor picture = pixels_[index].to(at::kFloat) / 127.5 - 1.0;
  return flip ? picture.flip({-1}) : picture;
}

}  // namespace moh::data
