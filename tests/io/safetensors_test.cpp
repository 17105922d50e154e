#include "moh/io/safetensors.h"

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
using test::text_of;

std::string with_length(std::uint64_t length, const std::string& rest) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(length >> (8 * i));
  return file + rest;
}

std::string file_of(const std::string& header, std::size_t data_bytes = 0) {
  return with_length(header.size(), header) + std::string(data_bytes, 'd');
}

std::string error_reading(const std::string& file) {
  const std::string error = error_of([&] { SafetensorsFile(bytes_of(file), "t"); });
  const std::string prefix = "[safetensors] t: ";
  if (error.empty()) return "";
  return error.starts_with(prefix) ? error.substr(prefix.size()) : "UNEXPECTED START: " + error;
}

std::string entry(const std::string& shape, std::uint64_t begin, std::uint64_t end, const std::string& dtype = "U8") {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":[)" + std::to_string(begin) + "," +
         std::to_string(end) + "]}";
}

TEST(Safetensors, ReadsTheFormatsExample) {
  const std::string file = file_of(R"({"__metadata__":{"k":"v"},"b":)" + entry("[2,3]", 0, 24, "F32") + R"(,"a":)" +
                                       entry("[]", 24, 26, "BF16") + "}   ",
                                   26);
  const SafetensorsFile tensors(bytes_of(file), "memory");
  EXPECT_EQ(tensors.path(), "memory");
  ASSERT_EQ(tensors.tensors().size(), 2u);
  EXPECT_EQ(tensors.metadata(), (std::map<std::string, std::string>{{"k", "v"}}));
  const TensorView* b = tensors.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b, &tensors.tensors()[0]);
  EXPECT_EQ(b->dtype, "F32");
  EXPECT_EQ(b->shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(b->bytes.data(), bytes_of(file).data() + file.size() - 26);
  EXPECT_EQ(tensors.find("a")->shape.size(), 0u);
  EXPECT_EQ(tensors.find("a")->bytes.size(), 2u);
  EXPECT_EQ(tensors.find("c"), nullptr);
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  EXPECT_EQ(error_reading(file_of("{}")), "");
  EXPECT_EQ(error_reading(file_of(R"({"a":)" + entry("[0,5]", 0, 0) + "}")), "");
  EXPECT_EQ(error_reading(file_of(R"({"a":)" + entry("[2]", 0, 2) + R"(,"z":)" + entry("[0]", 2, 2) + R"(,"b":)" +
                                      entry("[1]", 2, 3) + "}",
                                  3)),
            "");
  // Header order is free; the list follows the offsets.
  const std::string file = file_of(R"({"late":)" + entry("[1]", 1, 2) + R"(,"early":)" + entry("[1]", 0, 1) + "}", 2);
  const SafetensorsFile tensors(bytes_of(file), "t");
  EXPECT_EQ(tensors.tensors()[0].name, "early");
  EXPECT_EQ(tensors.tensors()[1].name, "late");
}

TEST(Safetensors, EveryRuleHasItsError) {
  const std::string u8 = entry("[4]", 0, 4);
  const struct {
    std::string file;
    std::string error;
  } kCases[] = {
      {"", "expected at least 8 bytes of header length, got 0"},
      {"1234567", "expected at least 8 bytes of header length, got 7"},
      {with_length(100'000'001, "{}"),
       "header length 100000001 is above the limit of 100000000; is this a safetensors file?"},
      {with_length(~std::uint64_t{0}, "{}"),
       "header length 18446744073709551615 is above the limit of 100000000; is this a safetensors file?"},
      {with_length(3, "{}"), "header length 3 is beyond the file's 10 bytes; is the file cut short?"},
      {with_length(0, ""), "the header must begin with '{'"},
      {file_of(" {}"), "the header must begin with '{'"},
      {file_of("[]"), "the header must begin with '{'"},
      {file_of("{} x"),
       "header: line 1, column 4: syntax error while parsing value - invalid literal; last read: '{} x'; expected end "
       "of input"},
      {file_of(std::string("{}\0", 3)), "header: line 1, column 3: a NUL byte"},
      {file_of("{\"a\xff\":" + u8 + "}", 4),
       "header: line 1, column 4: syntax error while parsing object key - invalid string: ill-formed UTF-8 byte; last "
       "read: '\"a?'; expected string literal"},
      {file_of(R"({"a":)" + u8 + R"(,"a":)" + u8 + "}", 4), "header: line 1, column 57: key `a` appears twice"},
      {file_of(R"({"a":{"dtype":"U8","dtype":"U8"}})"), "header: line 1, column 27: key `dtype` appears twice"},
      {file_of(R"({"__metadata__":{"k":"1","k":"2"}})"), "header: line 1, column 29: key `k` appears twice"},
      {file_of(R"({"__metadata__":{"k":1}})"), "metadata \"k\" must be a string, got a number"},
      {file_of(R"({"__metadata__":{"k":{}}})"), "metadata \"k\" must be a string, got an object"},
      {file_of(R"({"__metadata__":{"k":null}})"), "metadata \"k\" must be a string, got null"},
      {file_of(R"({"__metadata__":[]})"), "\"__metadata__\" must be an object, got an array"},
      {file_of(R"({"a":3})"), "\"a\" must be an object, got a number"},
      {file_of(R"({"a\n\u00e9":"x"})"), "\"a\\n\\u00e9\" must be an object, got a string"},
      {file_of(R"({"a":)" + entry("[4]", 0, 4, "F7") + "}", 4), "tensor \"a\" has the unknown dtype \"F7\""},
      {file_of(R"({"a":)" + entry("[4]", 0, 4, "f32") + "}", 4), "tensor \"a\" has the unknown dtype \"f32\""},
      {file_of(R"({"a":)" + entry("[4]", 0, 4, "") + "}", 4), "tensor \"a\" has the unknown dtype \"\""},
      {file_of(R"({"a":{"dtype":1}})"), "tensor \"a\": dtype cannot hold a number, expected a name"},
      {file_of(R"({"a":{"extra":1}})"), "tensor \"a\" has the unknown field \"extra\""},
      {file_of(R"({"a":{}})"), "tensor \"a\" lacks dtype"},
      {file_of(R"({"a":{"dtype":"U8","data_offsets":[0,0]}})"), "tensor \"a\" lacks shape"},
      {file_of(R"({"a":{"dtype":"U8","shape":[0]}})"), "tensor \"a\" lacks data_offsets"},
      {file_of(R"({"a":)" + entry("[-4]", 0, 4) + "}", 4),
       "tensor \"a\": shape cannot hold a negative number, expected a list of non-negative integers"},
      {file_of(R"({"a":)" + entry("[4.0]", 0, 4) + "}", 4),
       "tensor \"a\": shape cannot hold a fraction or too large a number, expected a list of non-negative integers"},
      {file_of(R"({"a":)" + entry("[9223372036854775808]", 0, 4) + "}", 4),
       "tensor \"a\": shape cannot hold too large a number, expected a list of non-negative integers"},
      {file_of(R"({"a":)" + entry("[18446744073709551616]", 0, 4) + "}", 4),
       "tensor \"a\": shape cannot hold a fraction or too large a number, expected a list of non-negative integers"},
      {file_of(R"({"a":)" + entry("[true]", 0, 4) + "}", 4),
       "tensor \"a\": shape cannot hold a boolean, expected a list of non-negative integers"},
      {file_of(R"({"a":)" + entry("[[4]]", 0, 4) + "}", 4),
       "tensor \"a\": shape cannot hold an array, expected a list of non-negative integers"},
      {file_of(R"({"a":)" + entry("4", 0, 4) + "}", 4),
       "tensor \"a\": shape cannot hold a number, expected a list of non-negative integers"},
      {file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0]}})", 4),
       "tensor \"a\": data_offsets must be two numbers, got 1"},
      {file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4,4]}})", 4),
       "tensor \"a\": data_offsets cannot hold a third number, expected a list of non-negative integers"},
      {file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[-1,3]}})", 4),
       "tensor \"a\": data_offsets cannot hold a negative number, expected a list of non-negative integers"},
      {file_of(R"({"a":)" + entry("[4]", 4, 0) + "}", 4), "tensor \"a\" ends before it begins: [4, 0]"},
      {file_of(R"({"a":)" + u8 + "}", 3),
       "tensor \"a\" ends at byte 4 of the data, but there are 3; is the file cut short?"},
      {file_of(R"({"a":)" + entry("[4]", 0, ~std::uint64_t{0}) + "}", 4),
       "tensor \"a\" ends at byte 18446744073709551615 of the data, but there are 4; is the file cut short?"},
      {file_of(R"({"a":)" + entry("[4]", 0, 3) + "}", 3),
       "tensor \"a\" of shape [4] and dtype U8 needs 4 bytes, but its offsets span 3"},
      {file_of(R"({"a":)" + entry("[]", 0, 0) + "}"),
       "tensor \"a\" of shape [] and dtype U8 needs 1 bytes, but its offsets span 0"},
      {file_of(R"({"a":)" + entry("[4294967296,4294967296]", 0, 0) + "}"),
       "tensor \"a\" of shape [4294967296, 4294967296] has too many elements"},
      {file_of(R"({"a":)" + entry("[0,4294967296,4294967296]", 0, 0) + "}"),
       "tensor \"a\" of shape [0, 4294967296, 4294967296] has too many elements"},
      {file_of(R"({"a":)" + entry("[2305843009213693952]", 0, 0, "F64") + "}"),
       "tensor \"a\" of shape [2305843009213693952] has too many elements"},
      {file_of(R"({"a":)" + entry("[1]", 1, 2) + "}", 2), "tensor \"a\" leaves a hole: bytes 0 to 1 are unused"},
      {file_of(R"({"a":)" + entry("[1]", 0, 1) + R"(,"b":)" + entry("[1]", 2, 3) + "}", 3),
       "tensor \"b\" leaves a hole: bytes 1 to 2 are unused"},
      {file_of(R"({"a":)" + entry("[2]", 0, 2) + R"(,"b":)" + entry("[2]", 1, 3) + "}", 3),
       "tensor \"b\" overlaps another one at byte 1"},
      {file_of(R"({"a":)" + entry("[2]", 0, 2) + R"(,"b":)" + entry("[2]", 0, 2) + "}", 2),
       "tensor \"b\" overlaps another one at byte 0"},
      {file_of(R"({"a":)" + entry("[2]", 0, 2) + R"(,"z":)" + entry("[0]", 1, 1) + "}", 2),
       "tensor \"z\" overlaps another one at byte 1"},
      {file_of(R"({"a":)" + u8 + "}", 5), "1 bytes at the end belong to no tensor"},
      {file_of("{}", 2), "2 bytes at the end belong to no tensor"},
  };
  for (const auto& [file, error] : kCases) EXPECT_EQ(error_reading(file), error);
}

TEST(Safetensors, ErrorsOfFilesNameThem) {
  const TempFolder folder;
  write_file(folder.file("bad.safetensors"), "abc");
  EXPECT_EQ(error_of([&] { SafetensorsFile(folder.file("bad.safetensors")); }),
            "[safetensors] " + folder.file("bad.safetensors") + ": expected at least 8 bytes of header length, got 3");
  EXPECT_EQ(error_of([&] { SafetensorsFile(folder.file("none")); }),
            "[files] " + folder.file("none") + ": cannot open: No such file or directory");
}

TEST(Safetensors, DeepOrEndlessHeadersCostLittle) {
  const std::string deep(1'000'000, '[');
  EXPECT_NE(error_reading(file_of("{\"a\":" + deep)), "");
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  EXPECT_NE(error_reading(file_of(objects)), "");
}

TEST(Safetensors, WritesAndReadsBack) {
  const TempFolder folder;
  const std::string path = folder.file("model.safetensors");
  const std::string a(24, 'a'), b(3, 'b'), scalar(8, 's');
  const std::vector<TensorView> tensors = {{"z.weight", "F32", {2, 3}, bytes_of(a)},
                                           {"a \"quoted\" näme\n", "U8", {3}, bytes_of(b)},
                                           {"empty", "F16", {0, 7}, {}},
                                           {"scalar", "I64", {}, bytes_of(scalar)}};
  write_safetensors(path, tensors, {{"source", "test"}});
  const SafetensorsFile file(path);
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}, {"source", "test"}}));
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_EQ(file.tensors()[i].name, tensors[i].name);
    EXPECT_EQ(file.tensors()[i].dtype, tensors[i].dtype);
    EXPECT_EQ(file.tensors()[i].shape, tensors[i].shape);
    EXPECT_EQ(text_of(file.tensors()[i].bytes), text_of(tensors[i].bytes));
  }
  const std::string content = read_file(path);
  EXPECT_EQ(static_cast<unsigned char>(content[0]) % 8, 0) << "the data is 8-aligned";

  // What was read is written back identically, even over the mapped file itself.
  write_safetensors(path, file.tensors(), file.metadata());
  EXPECT_EQ(read_file(path), content);
}

TEST(Safetensors, WritesTheBytesOfTheReferenceImplementation) {
  const TempFolder folder;
  const std::string path = folder.file("model.safetensors");
  const std::string data("\x00\x00\x80\x3f\x00\x00\x00\x40", 8);
  write_safetensors(path, {{"x", "F32", {2}, bytes_of(data)}});
  const std::string header = R"({"__metadata__":{"format":"pt"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  EXPECT_EQ(read_file(path), with_length(88, header + std::string(88 - header.size(), ' ') + data));
}

TEST(Safetensors, RefusesToWriteWhatCannotBeRead) {
  const TempFolder folder;
  const std::string path = folder.file("model.safetensors");
  const std::string four(4, 'x');
  const auto error_writing = [&](const std::vector<TensorView>& tensors,
                                 std::map<std::string, std::string> metadata = {}) {
    std::string error = error_of([&] { write_safetensors(path, tensors, std::move(metadata)); });
    return error.substr(std::min(error.size(), error.rfind(": ") + 2));
  };
  const TensorView good{"a", "U8", {4}, bytes_of(four)};
  EXPECT_EQ(error_writing({good, good}), "two tensors are named \"a\"");
  EXPECT_EQ(error_writing({{"a", "F9", {4}, bytes_of(four)}}), "tensor \"a\" has the unknown dtype \"F9\"");
  EXPECT_EQ(error_writing({{"a", "F32", {4}, bytes_of(four)}}),
            "tensor \"a\" of shape [4] and dtype F32 cannot have 4 bytes");
  EXPECT_EQ(error_writing({{"a", "U8", {-2, -2}, bytes_of(four)}}),
            "tensor \"a\" of shape [-2, -2] and dtype U8 cannot have 4 bytes");
  EXPECT_EQ(error_writing({{"__metadata__", "U8", {4}, bytes_of(four)}}), "a tensor cannot be named __metadata__");
  EXPECT_EQ(error_writing({{"\xff", "U8", {4}, bytes_of(four)}}), "names and metadata must be valid UTF-8");
  EXPECT_EQ(error_writing({good}, {{"k", "\xff"}}), "names and metadata must be valid UTF-8");
  EXPECT_EQ(folder.count(), 0);
}

TEST(Safetensors, DtypeBytes) {
  EXPECT_EQ(dtype_bytes("F64"), 8);
  EXPECT_EQ(dtype_bytes("BF16"), 2);
  EXPECT_EQ(dtype_bytes("F8_E5M2"), 1);
  EXPECT_EQ(dtype_bytes("BOOL"), 1);
  EXPECT_EQ(dtype_bytes("float32"), 0);
}

// Whatever a damaged file says, reading it gives tensors inside the file or one Error.
TEST(Safetensors, SurvivesRandomDamage) {
  const std::string good =
      file_of(R"({"__metadata__":{"format":"pt"},"w":)" + entry("[2,3]", 0, 24, "F32") + R"(,"b":)" +
                  entry("[5]", 24, 34, "F16") + R"(,"s":)" + entry("[]", 34, 35) + "}",
              35);
  ASSERT_EQ(error_reading(good), "");
  const std::vector<std::string> kWords = {"{",   "}",  "[",  "]",    ",",     ":",    "\"", "0",          "-1",
                                           "1e9", "\\", "\0", "\xff", "99999", "null", "[]", "\"dtype\":", "\"F32\""};
  std::mt19937 random(1);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string file = good;
    for (std::size_t edits = 1 + below(4); edits > 0 && !file.empty(); --edits) {
      const std::size_t at = below(file.size());
      switch (below(6)) {
        case 0:
          file[at] = static_cast<char>(random());
          break;
        case 1:
          file[at] ^= static_cast<char>(1 << below(8));
          break;
        case 2:
          file.erase(at, 1 + below(8));
          break;
        case 3:
          file.insert(at, kWords[below(kWords.size())]);
          break;
        case 4:
          file.insert(at, file.substr(below(file.size()), below(40)));
          break;
        default:
          file.resize(at);
      }
    }
    // Half of the time the length is put right, so that damage reaches the checks behind it.
    if (below(2) && file.size() > 43) file = with_length(file.size() - 8 - 35, file.substr(8));
    try {
      const SafetensorsFile tensors(bytes_of(file), "t");
      for (const TensorView& tensor : tensors.tensors()) {
        ASSERT_GE(tensor.bytes.data(), bytes_of(file).data());
        ASSERT_LE(tensor.bytes.data() + tensor.bytes.size(), bytes_of(file).data() + file.size());
      }
      ++accepted;
    } catch (const Error& error) {
      ASSERT_EQ(std::string(error.what()).rfind("[safetensors] t: ", 0), 0u) << error.what();
      ASSERT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos) << error.what();
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST(Safetensors, ReadsARealModel) {
  const std::string path = MOH_SOURCE_DIR "/../shared/data/models/stories260K/model.safetensors";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const SafetensorsFile file(path);
  EXPECT_EQ(file.tensors().size(), 47u);
  std::uint64_t bytes = 0;
  for (const TensorView& tensor : file.tensors()) bytes += tensor.bytes.size();
  EXPECT_EQ(bytes, 260'032u * 4);
  const TempFolder folder;
  write_safetensors(folder.file("copy"), file.tensors(), file.metadata());
  EXPECT_EQ(read_file(folder.file("copy")), read_file(path));
}

}  // namespace
}  // namespace moh::io
