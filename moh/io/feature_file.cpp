#include "moh/io/feature_file.h"

#include <ATen/ATen.h>

#include <cstring>

#include "moh/base/error.h"
#include "moh/io/files.h"
#include "moh/io/npy.h"
#include "moh/io/zip_archive.h"

namespace moh::io {
namespace {

at::Tensor to_tensor(std::span<const std::byte> bytes, const std::string& label) {
  static const std::map<std::string, at::ScalarType> types = {
      {"u1", at::kByte}, {"i1", at::kChar},  {"i2", at::kShort},  {"i4", at::kInt}, {"i8", at::kLong},
      {"f2", at::kHalf}, {"f4", at::kFloat}, {"f8", at::kDouble}, {"b1", at::kBool}};
  const NpyHeader header = read_npy_header(bytes, label);
  const auto type = types.find(header.dtype);
  MOH_CHECK(type != types.end(), "[arrays] ", label, ": dtype ", header.dtype, " is not supported");
  at::Tensor tensor = at::empty(header.shape, at::TensorOptions(type->second));
  if (tensor.numel() > 0) {
    std::memcpy(tensor.mutable_data_ptr(), bytes.data() + header.data_offset, tensor.nbytes());
  }
  return tensor;
}

}  // namespace

std::map<std::string, at::Tensor> load_arrays(const std::string& path) {
  const MappedFile file(path);
  std::map<std::string, at::Tensor> arrays;
  if (!is_zip(file.bytes())) {
    arrays.emplace("", to_tensor(file.bytes(), path));
    return arrays;
  }
  for (const ZipEntry& entry : read_zip(file.bytes(), path)) {
    std::string name = entry.name;
    if (name.ends_with(".npy")) name.resize(name.size() - 4);
    arrays.emplace(name, to_tensor(entry.bytes, path + " " + entry.name));
  }
  return arrays;
}

}  // namespace moh::io
