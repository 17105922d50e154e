#include "moh/data/image_folder.h"

#include <gtest/gtest.h>

#include <atomic>

#include "moh/data/ordered_loader.h"
#include "moh/io/files.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::data {
namespace {

using test::error_of;
using test::TempFolder;

void put(const TempFolder& folder, const std::string& name) {
  std::filesystem::create_directories(std::filesystem::path(folder.file(name)).parent_path());
  io::write_file(folder.file(name), std::string_view("x"));
}

TEST(ImageFolder, NumbersClassesAndPicturesByName) {
  const TempFolder folder;
  for (const char* name :
       {"dog/b.png", "dog/a.JPG", "dog/deeper/c.jpeg", "Cat/1.jpg", "cat/2.jpg", "dog/notes.txt", "readme.md"}) {
    put(folder, name);
  }
  const ImageFolder read = ImageFolder::open(folder.path());
  EXPECT_EQ(read.classes, (std::vector<std::string>{"Cat", "cat", "dog"}));  // bytes: upper case first
  std::vector<std::string> items;
  for (const auto& item : read.items) {
    items.push_back(item.path.substr(folder.path().size() + 1) + " " + std::to_string(item.label));
  }
  EXPECT_EQ(items, (std::vector<std::string>{"Cat/1.jpg 0", "cat/2.jpg 1", "dog/a.JPG 2", "dog/b.png 2",
                                             "dog/deeper/c.jpeg 2"}));
  EXPECT_EQ(read.other_files, 1);
}

TEST(ImageFolder, SaysWhatIsMissing) {
  const TempFolder folder;
  const auto error = [](const std::string& path) { return error_of([&] { ImageFolder::open(path); }); };
  EXPECT_NE(error(folder.file("none")).find("is not a folder"), std::string::npos);
  EXPECT_NE(error(folder.path()).find("has no subfolders"), std::string::npos);
  put(folder, "a/x.jpg");
  put(folder, "b/notes.txt");
  EXPECT_NE(error(folder.path()).find("class folder `b` has no"), std::string::npos);
}

TEST(OrderedLoader, GivesItemsInOrderWhateverTheThreads) {
  for (const int threads : {0, 1, 3}) {
    std::atomic<int> made = 0;
    OrderedLoader<std::int64_t> loader(
        [&](std::int64_t number) {
          std::this_thread::sleep_for(std::chrono::microseconds((number * 7919) % 300));
          ++made;
          return number * number;
        },
        /*first=*/5, threads, /*ahead=*/4);
    for (std::int64_t number = 5; number < 60; ++number) {
      EXPECT_EQ(loader.next(), number);
      EXPECT_EQ(loader.take(), number * number);
      EXPECT_LE(made, number - 5 + 1 + 4);  // never further ahead
    }
    EXPECT_GE(loader.waited(), 0);
  }
}

TEST(OrderedLoader, HandsOnTheErrorOfItsItem) {
  for (const int threads : {0, 2}) {
    OrderedLoader<int> loader(
        [](std::int64_t number) {
          MOH_CHECK(number != 2, "item two");
          return static_cast<int>(number);
        },
        0, threads, 8);
    EXPECT_EQ(loader.take(), 0);
    EXPECT_EQ(loader.take(), 1);
    EXPECT_EQ(error_of([&] { loader.take(); }), "item two");
  }
}

}  // namespace
}  // namespace moh::data
