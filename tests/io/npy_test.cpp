#include "moh/io/npy.h"

#include <gtest/gtest.h>

#include <random>

#include "moh/io/files.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::io {
namespace {

using test::bytes_of;
using test::error_of;
using test::TempFolder;

std::string file_of(const std::string& header, std::size_t data_bytes, int major = 1) {
  std::string file = "\x93NUMPY";
  file += static_cast<char>(major);
  file += '\0';
  for (int i = 0; i < (major == 1 ? 2 : 4); ++i) file += static_cast<char>(header.size() >> (8 * i));
  return file + header + std::string(data_bytes, 'd');
}

std::string dict(const std::string& descr, const std::string& shape, const std::string& order = "False") {
  return "{'descr': " + descr + ", 'fortran_order': " + order + ", 'shape': " + shape + ", }  \n";
}

std::string error_reading(const std::string& file) {
  const std::string error = error_of([&] { read_npy_header(bytes_of(file), "t"); });
  return error.substr(std::min(error.size(), std::string("[npy] t: ").size()));
}

TEST(Npy, ReadsHeaders) {
  const NpyHeader header = read_npy_header(bytes_of(file_of(dict("'<u2'", "(3, 4)"), 24)), "t");
  EXPECT_EQ(header.dtype, "u2");
  EXPECT_EQ(header.shape, (std::vector<std::int64_t>{3, 4}));
  EXPECT_EQ(header.data_offset, 10 + dict("'<u2'", "(3, 4)").size());
  for (const int major : {1, 2, 3}) EXPECT_EQ(error_reading(file_of(dict("'<f4'", "(2,)"), 8, major)), "");
  EXPECT_EQ(read_npy_header(bytes_of(file_of(dict("'|b1'", "()"), 1)), "t").shape.size(), 0u);
  // Other orders, quotes and spacing, and Python 2's integers.
  EXPECT_EQ(error_reading(file_of("{\"shape\":(2L,),\"fortran_order\":False,\"descr\":\"<i8\"}", 16)), "");
  EXPECT_EQ(error_reading(file_of(dict("'<f8'", "(0, 5)"), 0)), "");
  EXPECT_EQ(error_reading(file_of(dict("'<f2'", "(2,)", "True"), 4)), "") << "one axis has no order";
}

TEST(Npy, RefusesWhatIsDamagedOrUnsupported) {
  const std::string good = file_of(dict("'<u2'", "(3,)"), 6);
  const struct {
    std::string file;
    std::string error;
  } kCases[] = {
      {"", "not a .npy file (it does not begin with \\x93NUMPY)"},
      {"PK\x03\x04 and more", "not a .npy file (it does not begin with \\x93NUMPY)"},
      {"\x93NUMPY\x01", "the file is cut short"},
      {good.substr(0, 9), "the file is cut short"},
      {good.substr(0, 40), "the header of 60 bytes does not fit into the file's 40"},
      {good.substr(0, good.size() - 1), "the shape needs 6 bytes of data, the file has 5"},
      {good + "x", "the shape needs 6 bytes of data, the file has 7"},
      {file_of(dict("'<u2'", "(3,)"), 6, 4), "expected format version 1.0 to 3.0, got 4.0"},
      {file_of(dict("'>u2'", "(3,)"), 6),
       "dtype >u2 is big-endian; save it as array.astype(array.dtype.newbyteorder('<'))"},
      {file_of(dict("'=u2'", "(3,)"), 6),
       "dtype =u2 is not supported, expected little-endian integers, floats or bool such as <u2, <f4, |u1, |b1"},
      {file_of(dict("'|u2'", "(3,)"), 6),
       "dtype |u2 is not supported, expected little-endian integers, floats or bool such as <u2, <f4, |u1, |b1"},
      {file_of(dict("'|O'", "(3,)"), 6),
       "dtype |O is not supported, expected little-endian integers, floats or bool such as <u2, <f4, |u1, |b1"},
      {file_of(dict("'<c8'", "(3,)"), 24),
       "dtype <c8 is not supported, expected little-endian integers, floats or bool such as <u2, <f4, |u1, |b1"},
      {file_of(dict("[('a', '<u2')]", "(3,)"), 6), "structured dtypes are not supported, save one field at a time"},
      {file_of(dict("'<u2'", "(3, 2)", "True"), 12),
       "the array is in Fortran order; save numpy.ascontiguousarray(array)"},
      {file_of(dict("'<u2'", "(3,)", "1"), 6), "the header is damaged, expected True or False"},
      {file_of(dict("'<u2'", "(-3,)"), 6), "the shape must hold non-negative integers"},
      {file_of(dict("'<u2'", "(3.0,)"), 6), "the header is damaged, expected `)`"},
      {file_of(dict("'<u2'", "(3)"), 6), "the shape must be a tuple, got a number in brackets"},
      {file_of(dict("'<u2'", "[3]"), 6), "the header is damaged, expected `(`"},
      {file_of(dict("'<u2'", "(,)"), 6), "the shape must hold non-negative integers"},
      {file_of(dict("'<u2'", "(9223372036854775808,)"), 6), "the shape holds too large a number"},
      {file_of(dict("'<u2'", "(9223372036854775807,)"), 6), "the shape has too many elements"},
      {file_of(dict("'<u2'", "(0, 4294967296, 4294967296)"), 0), "the shape has too many elements"},
      {file_of("{'descr': '<u2', 'shape': (3,)}", 6), "the header lacks descr, fortran_order or shape"},
      {file_of("{'descr': '<u2', 'descr': '<u2'}", 6), "the header has the key `descr` twice"},
      {file_of("{'descr': '<u2', 'evil': 1}", 6), "the header has the unknown key `evil`"},
      {file_of(dict("'<u2'", "(3,)") + "x", 6), "the header has text after its dictionary"},
      {file_of(dict("__import__('os')", "(3,)"), 6), "the header is damaged, expected a string"},
      {file_of("{'descr': '<u2", 6), "the header is damaged, a string does not end"},
      {file_of(dict("'<\\n2'", "(3,)"), 6), "the header is damaged, a string has odd characters"},
      {file_of("", 6), "the header is damaged, expected `{`"},
      {file_of("{", 6), "the header is damaged, expected a string"},
  };
  for (const auto& [file, error] : kCases) EXPECT_EQ(error_reading(file), error);
}

TEST(Npy, WritesWhatNumpyWrites) {
  const TempFolder folder;
  const std::string path = folder.file("a.npy");
  const std::string data(12, 'x');
  write_npy(path, "u2", {2, 3}, bytes_of(data));
  // numpy.save of numpy.full((2, 3), 0x7878, '<u2'), NumPy 2.4
  const std::string header = "{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), }";
  EXPECT_EQ(read_file(path), std::string("\x93NUMPY\x01\x00\x76\x00", 10) + header +
                                 std::string(117 - header.size(), ' ') + "\n" + data);
  const NpyHeader read = read_npy_header(bytes_of(read_file(path)), path);
  EXPECT_EQ(read.dtype, "u2");
  EXPECT_EQ(read.shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(read.data_offset, 128u);

  write_npy(path, "f8", {}, bytes_of(data.substr(0, 8)));
  EXPECT_TRUE(read_npy_header(bytes_of(read_file(path)), path).shape.empty());
  write_npy(path, "b1", {12}, bytes_of(data));
  EXPECT_NE(read_file(path).find("'|b1', 'fortran_order': False, 'shape': (12,), }"), std::string::npos);
  EXPECT_EQ(read_npy_header(bytes_of(read_file(path)), path).shape.front(), 12);
}

TEST(Npy, WriteErrors) {
  const TempFolder folder;
  const std::string path = folder.file("a.npy");
  const auto error_writing = [&](const std::string& dtype, const std::vector<std::int64_t>& shape) {
    return error_of([&] { write_npy(path, dtype, shape, bytes_of("xxxx")); });
  };
  EXPECT_NE(error_writing("float32", {1}).find("dtype float32 is not supported"), std::string::npos);
  EXPECT_NE(error_writing("f4", {2}).find("do not fit 4 bytes"), std::string::npos);
  EXPECT_NE(error_writing("u1", {-2, -2}).find("do not fit 4 bytes"), std::string::npos);
  EXPECT_EQ(folder.count(), 0);
}

TEST(Npy, SurvivesRandomDamage) {
  const std::string good = file_of(dict("'<u2'", "(3, 4)"), 24);
  std::mt19937 random(2);
  for (int round = 0; round < 20'000; ++round) {
    std::string file = good;
    for (std::size_t edits = 1 + random() % 3; edits > 0 && !file.empty(); --edits) {
      const std::size_t at = random() % file.size();
      switch (random() % 4) {
        case 0:
          file[at] = static_cast<char>(random());
          break;
        case 1:
          file.erase(at, 1 + random() % 4);
          break;
        case 2:
          file.insert(at, 1, "(){}',:[]0L\\ "[random() % 13]);
          break;
        default:
          file.resize(at);
      }
    }
    const std::string error = error_of([&] {
      const NpyHeader header = read_npy_header(bytes_of(file), "t");
      EXPECT_LE(header.data_offset, file.size());
    });
    ASSERT_TRUE(error.empty() || error.starts_with("[npy] t: ")) << error;
  }
}

TEST(Npy, ReadsRealFiles) {
  const std::string folder = MOH_SOURCE_DIR "/../shared/data/";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is not there";
  const MappedFile tokens(folder + "stories260K-samples/valid.npy");
  const NpyHeader header = read_npy_header(tokens.bytes(), "valid.npy");
  EXPECT_EQ(header.dtype, "u2");
  EXPECT_EQ(header.shape, (std::vector<std::int64_t>{200'161}));
  const MappedFile logits(folder + "models/stories260K/reference/logits_f64.npy");
  EXPECT_EQ(read_npy_header(logits.bytes(), "logits").shape, (std::vector<std::int64_t>{32, 512}));
}

}  // namespace
}  // namespace moh::io
