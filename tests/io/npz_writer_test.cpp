// The .npz of sampled pictures: read back, resumed, refused. That NumPy reads it is tested from outside (cli tests).
#include "moh/io/npz_writer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "moh/io/feature_file.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::io {
namespace {

namespace fs = std::filesystem;
using test::error_of;

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

TEST(NpzWriter, GoesOnWhereItStopped) {
  const test::TempFolder folder;
  const std::string path = folder.file("x.npz");
  const at::Tensor rows = at::randint(0, 256, {5, 2, 3, 3}, at::kLong).to(at::kByte);
  {
    NpzWriter writer(path, {5, 2, 3, 3}, {{"seed", 1}});
    EXPECT_EQ(writer.rows_done(), 0);
    writer.append(bytes_of(rows.narrow(0, 0, 2)));
    EXPECT_NE(error_of([&] { writer.finish(); }).find("2 of 5 rows"), std::string::npos);
    EXPECT_NE(error_of([&] { writer.append(bytes_of(rows.flatten().narrow(0, 0, 7))); }).find("whole rows"),
              std::string::npos);
  }
  EXPECT_FALSE(fs::exists(path));
  EXPECT_NE(error_of([&] { NpzWriter(path, {5, 2, 3, 3}, {{"seed", 2}}); }).find("another seed"), std::string::npos);
  EXPECT_NE(error_of([&] { NpzWriter(path, {6, 2, 3, 3}, {{"seed", 1}}); }).find("another shape"), std::string::npos);
  fs::resize_file(path + ".part", fs::file_size(path + ".part") - 5);  // the second row was cut by a crash
  {
    NpzWriter writer(path, {5, 2, 3, 3}, {{"seed", 1}});
    EXPECT_EQ(writer.rows_done(), 1);
    writer.append(bytes_of(rows.narrow(0, 1, 4)));
    writer.finish();
  }
  EXPECT_FALSE(fs::exists(path + ".part"));
  EXPECT_FALSE(fs::exists(path + ".part.json"));
  const auto arrays = load_arrays(path);
  ASSERT_EQ(arrays.size(), 1U);
  EXPECT_TRUE(at::equal(arrays.at("arr_0"), rows));
  EXPECT_NE(error_of([&] { NpzWriter(path, {5, 2, 3, 3}, {}); }).find("there already"), std::string::npos);
}

}  // namespace
}  // namespace moh::io
