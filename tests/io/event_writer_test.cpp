// Decodes the files with code of its own: a bitwise CRC and a general protobuf field reader.
#include "moh/io/event_writer.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <ctime>
#include <map>
#include <vector>

#include "moh/io/files.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::io {
namespace {

using test::TempFolder;

std::uint32_t crc32c(const std::string& bytes) {
  std::uint32_t crc = 0xffffffff;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? (crc >> 1) ^ 0x82f63b78 : crc >> 1;
  }
  return crc ^ 0xffffffff;
}

std::uint32_t mask(std::uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

template <class T>
T take(std::string& from) {
  T value;
  EXPECT_GE(from.size(), sizeof(T));
  std::memcpy(&value, from.data(), sizeof(T));
  from.erase(0, sizeof(T));
  return value;
}

std::string take_bytes(std::string& from, std::size_t size) {
  EXPECT_GE(from.size(), size);
  std::string bytes = from.substr(0, size);
  from.erase(0, size);
  return bytes;
}

std::vector<std::string> records_of(std::string file) {
  std::vector<std::string> records;
  while (!file.empty()) {
    const std::string length_bytes = file.substr(0, 8);
    const auto length = take<std::uint64_t>(file);
    EXPECT_EQ(take<std::uint32_t>(file), mask(crc32c(length_bytes)));
    records.push_back(take_bytes(file, length));
    EXPECT_EQ(take<std::uint32_t>(file), mask(crc32c(records.back())));
  }
  return records;
}

std::uint64_t take_varint(std::string& from) {
  std::uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = take<unsigned char>(from);
    value |= std::uint64_t{byte & 0x7fu} << shift;
    if (byte < 0x80) return value;
  }
}

// The fields of a message: numbers as their bits, bytes as they are.
struct Message {
  std::map<int, std::uint64_t> numbers;
  std::map<int, std::string> texts;

  explicit Message(std::string bytes) {
    while (!bytes.empty()) {
      const std::uint64_t key = take_varint(bytes);
      const int field = static_cast<int>(key >> 3);
      switch (key & 7) {
        case 0:
          numbers[field] = take_varint(bytes);
          break;
        case 1:
          numbers[field] = take<std::uint64_t>(bytes);
          break;
        case 2:
          texts[field] = take_bytes(bytes, take_varint(bytes));
          break;
        case 5:
          numbers[field] = take<std::uint32_t>(bytes);
          break;
        default:
          ADD_FAILURE() << "wire type " << (key & 7);
      }
    }
  }
};

std::string only_file(const TempFolder& folder) {
  EXPECT_EQ(folder.count(), 1);
  return std::filesystem::directory_iterator(folder.path())->path().string();
}

TEST(EventWriter, KnownChecksum) { EXPECT_EQ(crc32c("123456789"), 0xe3069283u) << "of the test's own decoder"; }

TEST(EventWriter, WritesVersionAndScalars) {
  const TempFolder folder;
  {
    EventWriter writer(folder.path());
    writer.scalar("loss/train", 2.5, 0);
    writer.scalar("loss/train", -0.125, 300);
    writer.scalar("größe", std::nan(""), std::int64_t{1} << 40);
  }
  const std::string path = only_file(folder);
  EXPECT_NE(path.find("/events.out.tfevents.1"), std::string::npos);
  const auto records = records_of(read_file(path));
  ASSERT_EQ(records.size(), 4u);

  const Message version(records[0]);
  EXPECT_EQ(version.texts.at(3), "brain.Event:2");
  EXPECT_NEAR(std::bit_cast<double>(version.numbers.at(1)), static_cast<double>(std::time(nullptr)), 60);

  const std::string tags[] = {"loss/train", "loss/train", "größe"};
  const float values[] = {2.5f, -0.125f, NAN};
  const std::uint64_t steps[] = {0, 300, std::uint64_t{1} << 40};
  for (std::size_t i = 0; i < 3; ++i) {
    const Message event(records[i + 1]);
    const std::uint64_t step = event.numbers.contains(2) ? event.numbers.at(2) : 0;
    EXPECT_EQ(step, steps[i]);
    const Message value(Message(event.texts.at(5)).texts.at(1));
    EXPECT_EQ(value.texts.at(1), tags[i]);
    const float got = std::bit_cast<float>(static_cast<std::uint32_t>(value.numbers.at(2)));
    EXPECT_TRUE(got == values[i] || (std::isnan(got) && std::isnan(values[i]))) << got;
  }
}

TEST(EventWriter, FlushMakesRecordsVisible) {
  const TempFolder folder;
  EventWriter writer(folder.path());
  EXPECT_EQ(records_of(read_file(only_file(folder))).size(), 1u);
  for (int i = 0; i < 10; ++i) writer.scalar("x", i, i);
  writer.flush();
  EXPECT_EQ(records_of(read_file(only_file(folder))).size(), 11u);
  for (int i = 0; i < 5000; ++i) writer.scalar("x", i, i);
  EXPECT_GT(records_of(read_file(only_file(folder))).size(), 1000u) << "much is not held back until the end";
}

TEST(EventWriter, WritersDoNotShareAFile) {
  const TempFolder folder;
  const EventWriter first(folder.file("deep/logs")), second(folder.file("deep/logs"));
  const std::filesystem::directory_iterator files(folder.file("deep/logs"));
  EXPECT_EQ(std::distance(begin(files), end(files)), 2);
}

TEST(EventWriter, FolderThatCannotBe) {
  const TempFolder folder;
  write_file(folder.file("file"), "x");
  EXPECT_EQ(test::error_of([&] { EventWriter writer(folder.file("file")); }).rfind("[event_writer] ", 0), 0u);
  EXPECT_NE(test::error_of([&] { EventWriter writer(folder.file("file/logs")); }).find("cannot create the folder"),
            std::string::npos);
}

}  // namespace
}  // namespace moh::io
