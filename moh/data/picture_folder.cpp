#include "moh/data/picture_folder.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <map>
#include <mutex>

#include "moh/base/error.h"

namespace moh::data {

using at::Tensor;

Tensor square_picture(const io::Image& image, std::int64_t size) {
  MOH_CHECK(size > 0 && image.width > 0 && image.height > 0, "[data] a picture of ", image.width, " x ", image.height,
            " cannot be made ", size, " x ", size);
  const c10::NoGradGuard no_grad;
  Tensor pixels = at::empty({image.height, image.width, 3}, at::TensorOptions(at::kByte));
  std::copy(image.rgb.begin(), image.rgb.end(), pixels.mutable_data_ptr<std::uint8_t>());
  pixels = pixels.permute({2, 0, 1});
  const std::int64_t shorter = std::min(image.width, image.height);
  if (shorter != size) {
    const double scale = static_cast<double>(size) / static_cast<double>(shorter);
    const auto scaled = [&](std::int64_t side) {
      return side == shorter ? size : std::max(size, static_cast<std::int64_t>(std::lround(scale * side)));
    };
    pixels = at::_upsample_bicubic2d_aa(pixels.unsqueeze(0).to(at::kFloat), {scaled(image.height), scaled(image.width)},
                                        /*align_corners=*/false)
                 .squeeze(0)
                 .round()
                 .clamp(0, 255)
                 .to(at::kByte);
  }
  return pixels.narrow(1, (pixels.size(1) - size) / 2, size).narrow(2, (pixels.size(2) - size) / 2, size).contiguous();
}

Tensor folder_picture(const ImageFolder& folder, std::int64_t index, std::int64_t size) {
  return square_picture(io::load_image(folder.items[static_cast<std::size_t>(index)].path), size);
}

std::vector<std::int64_t> folder_labels(const ImageFolder& folder) {
  std::vector<std::int64_t> labels;
  for (const auto& item : folder.items) labels.push_back(item.label);
  return labels;
}

std::shared_ptr<const PictureSource> load_pictures(const ImageFolder& folder, std::int64_t size,
                                                   const std::function<bool(double)>& on_done,
                                                   std::vector<std::string>& unreadable) {
  const auto count = static_cast<std::int64_t>(folder.items.size());
  Tensor pixels = at::empty({count, 3, size, size}, at::TensorOptions(at::kByte));
  std::map<std::int64_t, std::string> broken;
  std::mutex broken_mutex;
  constexpr std::int64_t kChunk = 1024, kGrain = 16;
  for (std::int64_t from = 0; from < count; from += kChunk) {
    const std::int64_t to = std::min(from + kChunk, count);
    at::parallel_for(from, to, kGrain, [&](std::int64_t begin, std::int64_t end) {
      const c10::NoGradGuard no_grad;
      for (std::int64_t i = begin; i < end; ++i) {
        try {
          pixels[i].copy_(folder_picture(folder, i, size));
        } catch (const Error& error) {
          const std::lock_guard lock(broken_mutex);
          broken.emplace(i, error.what());
        }
      }
    });
    if (on_done && !on_done(static_cast<double>(to) / static_cast<double>(count))) return nullptr;
  }
  std::vector<std::int64_t> labels = folder_labels(folder);
  if (!broken.empty()) {
    for (const auto& [picture, error] : broken) unreadable.push_back(error);
    check_some_readable(folder, broken.size(), unreadable.back());
    std::vector<std::int64_t> whole, labels_of_whole;
    for (std::int64_t i = 0; i < count; ++i) {
      if (broken.contains(i)) continue;
      whole.push_back(i);
      labels_of_whole.push_back(labels[static_cast<std::size_t>(i)]);
    }
    pixels = pixels.index_select(0, at::tensor(whole));
    labels = labels_of_whole;
  }
  return std::make_shared<PixelSource>(pixels, labels, folder.classes);
}

void check_some_readable(const ImageFolder& folder, std::size_t broken, const std::string& last) {
  MOH_CHECK(broken < folder.items.size(), "[data] none of the ", broken, " pictures of ", folder.root,
            " can be read; the last: ", last);
}

}  // namespace moh::data
