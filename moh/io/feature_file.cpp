#include "moh/io/feature_file.h"

#include <ATen/ATen.h>

#include <cstring>

#include "moh/base/error.h"
#include "moh/io/files.h"
#include "moh/io/npy.h"
#include "moh/io/zip_archive.h"
#include "moh/io/zip_bytes.h"

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

// What a local header and its row in the table of contents have in common.
std::string common_fields(std::uint32_t crc, std::uint32_t size, const std::string& name) {
  std::string out;
  put_little<std::uint16_t>(out, 20);  // version
  put_little<std::uint16_t>(out, 0);   // flags
  put_little<std::uint16_t>(out, 0);   // stored
  put_little<std::uint16_t>(out, 0);   // time
  put_little(out, kZipDate);
  put_little(out, crc);
  put_little(out, size);
  put_little(out, size);
  put_little(out, static_cast<std::uint16_t>(name.size()));
  put_little<std::uint16_t>(out, 0);  // extra field
  return out;
}

std::string npy_bytes(const at::Tensor& array, const std::string& label) {
  const auto type = array.scalar_type();
  MOH_CHECK(type == at::kFloat || type == at::kByte, "[arrays] ", label, ": only fp32 and uint8 are written, got ",
            type);
  const at::Tensor plain = array.detach().cpu().contiguous();
  std::string bytes = npy_head(type == at::kFloat ? "f4" : "u1", plain.sizes().vec());
  if (plain.numel() > 0) bytes.append(static_cast<const char*>(plain.const_data_ptr()), plain.nbytes());
  return bytes;
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
    const std::string label = path + " " + entry.name;
    arrays.emplace(name, entry.packed ? to_tensor(unpack(entry, label), label) : to_tensor(entry.bytes, label));
  }
  return arrays;
}

void save_arrays(const std::string& path, const std::map<std::string, at::Tensor>& arrays) {
  std::string file, contents;
  constexpr std::uint64_t kLimit = 0xffffffff;
  for (const auto& [array, tensor] : arrays) {
    const std::string name = array + ".npy", bytes = npy_bytes(tensor, path + " " + array);
    MOH_CHECK(file.size() + bytes.size() < kLimit, "[arrays] ", path, " would become larger than 4 GB");
    const std::uint32_t crc =
        ~zip_crc(0xffffffff, {reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size()});
    const std::string common = common_fields(crc, static_cast<std::uint32_t>(bytes.size()), name);
    contents += "PK\x01\x02";
    put_little<std::uint16_t>(contents, 20);
    contents += common;
    put_little<std::uint16_t>(contents, 0);  // comment
    put_little<std::uint16_t>(contents, 0);  // disk
    put_little<std::uint16_t>(contents, 0);
    put_little<std::uint32_t>(contents, 0);
    put_little(contents, static_cast<std::uint32_t>(file.size()));
    contents += name;
    file += "PK\x03\x04" + common + name + bytes;
  }
  const auto begin = static_cast<std::uint32_t>(file.size());
  const auto count = static_cast<std::uint16_t>(arrays.size());
  file += contents + "PK\x05\x06";
  put_little<std::uint32_t>(file, 0);  // disks
  put_little(file, count);
  put_little(file, count);
  put_little(file, static_cast<std::uint32_t>(contents.size()));
  put_little(file, begin);
  put_little<std::uint16_t>(file, 0);
  write_file(path, file);
}

}  // namespace moh::io
