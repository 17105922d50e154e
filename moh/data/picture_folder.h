// The pictures of an ImageFolder at one size, for diffusion models: cut to the middle square and scaled to it.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "moh/data/image_folder.h"
#include "moh/data/picture_source.h"
#include "moh/io/image.h"

namespace moh::data {

// [3, size, size] uint8: the shorter side scaled to `size` (bicubic, low-pass filtered), then the middle.
at::Tensor square_picture(const io::Image& image, std::int64_t size);

// Picture number `index` of the folder.
at::Tensor folder_picture(const ImageFolder& folder, std::int64_t index, std::int64_t size);

// All pictures of the folder in memory. `on_done` hears the share that is read and may say stop by returning false;
// then the result is null. Pictures that cannot be read are left out, their errors added to `unreadable`. Error: none
// can be read.
std::shared_ptr<const PictureSource> load_pictures(const ImageFolder& folder, std::int64_t size,
                                                   const std::function<bool(double)>& on_done,
                                                   std::vector<std::string>& unreadable);

// Error: so many of the folder's pictures are all of them. `last`: what was wrong with one.
void check_some_readable(const ImageFolder& folder, std::size_t broken, const std::string& last);

std::vector<std::int64_t> folder_labels(const ImageFolder& folder);

}  // namespace moh::data
