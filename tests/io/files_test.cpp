#include "moh/io/files.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::io {
namespace {

using test::bytes_of;
using test::error_of;
using test::TempFolder;
using test::text_of;

// No file may grow beyond this while the object lives: a full disk that works for root too.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    old_handler_ = ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    ::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_;
  sighandler_t old_handler_;
};

TEST(Files, WriteAndReadBack) {
  const TempFolder folder;
  const std::string path = folder.file("a.bin");
  const std::string content = std::string("x\0y\xff", 4) + std::string(100'000, 'z');
  write_file(path, content);
  EXPECT_EQ(read_file(path), content);
  write_file(path, "short");
  EXPECT_EQ(read_file(path), "short");
  write_file(path, "");
  EXPECT_EQ(read_file(path), "");
  EXPECT_EQ(folder.count(), 1);
}

TEST(Files, WriteInPieces) {
  const TempFolder folder;
  const std::string path = folder.file("a.bin");
  write_file(path, [](const Sink& write) {
    for (int i = 0; i < 1000; ++i) write(bytes_of(std::to_string(i) + ","));
    write({});
  });
  EXPECT_EQ(read_file(path).substr(0, 8), "0,1,2,3,");
  EXPECT_EQ(read_file(path).size(), 3890u);
}

TEST(Files, ReadErrors) {
  const TempFolder folder;
  EXPECT_EQ(error_of([&] { read_file(folder.file("none")); }),
            "[files] " + folder.file("none") + ": cannot open: No such file or directory");
  EXPECT_EQ(error_of([&] { read_file(folder.path()); }),
            "[files] " + folder.path() + ": expected a regular file, got a folder");
  EXPECT_EQ(error_of([&] { read_file("/dev/zero"); }),
            "[files] /dev/zero: expected a regular file, got a device or pipe");
  ASSERT_EQ(::mkfifo(folder.file("pipe").c_str(), 0600), 0);
  EXPECT_NE(error_of([&] { read_file(folder.file("pipe")); }), "") << "and does not wait for a writer";
  write_file(folder.file("ten"), "0123456789");
  EXPECT_EQ(read_file(folder.file("ten"), 10).size(), 10u);
  EXPECT_EQ(error_of([&] { read_file(folder.file("ten"), 9); }),
            "[files] " + folder.file("ten") + ": larger than 9 bytes");
}

TEST(Files, ReadsFilesThatHideTheirSize) {
  EXPECT_FALSE(read_file("/proc/self/status").empty());
  EXPECT_NE(error_of([&] { read_file("/proc/self/status", 10); }), "");
}

TEST(Files, WriteErrors) {
  const TempFolder folder;
  EXPECT_EQ(error_of([&] { write_file(folder.file("no/file"), "x"); }),
            "[files] " + folder.file("no/file") + ": cannot write: the folder " + folder.file("no") +
                " does not exist, create it first");
  EXPECT_EQ(error_of([&] { write_file(folder.path(), "x"); }),
            "[files] " + folder.path() + ": cannot write: it is a folder");
  // As root a rename over /dev/full would succeed and destroy it.
  EXPECT_EQ(error_of([&] { write_file("/dev/full", "x"); }), "[files] /dev/full: cannot write: it is a device or pipe");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/full"));
  EXPECT_NE(error_of([&] { write_file("/proc/none", "x"); }), "");
  EXPECT_EQ(folder.count(), 0);
}

TEST(Files, FullDiskKeepsTheOldContent) {
  const TempFolder folder;
  const std::string path = folder.file("model.bin");
  write_file(path, "old");
  std::string error;
  {
    const FileSizeLimit limit(1 << 16);
    error = error_of([&] { write_file(path, std::string(1 << 20, 'n')); });
  }
  EXPECT_EQ(error, "[files] " + path + ": cannot write: File too large");
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(folder.count(), 1) << "the temporary file is gone";
}

TEST(Files, FailingProducerKeepsTheOldContent) {
  const TempFolder folder;
  const std::string path = folder.file("model.bin");
  write_file(path, "old");
  EXPECT_THROW(write_file(path,
                          [](const Sink& write) {
                            write(bytes_of("half"));
                            throw std::runtime_error("no more");
                          }),
               std::runtime_error);
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(folder.count(), 1);
}

TEST(Files, MappedFile) {
  const TempFolder folder;
  const std::string path = folder.file("a.bin");
  write_file(path, "mapped");
  MappedFile file(path);
  EXPECT_EQ(text_of(file.bytes()), "mapped");
  write_file(path, "other");
  EXPECT_EQ(text_of(file.bytes()), "mapped") << "replacing the file leaves the mapping alone";
  MappedFile moved(std::move(file));
  EXPECT_EQ(text_of(moved.bytes()), "mapped");
  EXPECT_TRUE(file.bytes().empty());
  moved = MappedFile(path);
  EXPECT_EQ(text_of(moved.bytes()), "other");
  write_file(path, "");
  EXPECT_TRUE(MappedFile(path).bytes().empty());
  EXPECT_NE(error_of([&] { MappedFile(folder.path()); }), "");
  EXPECT_NE(error_of([&] { MappedFile(folder.file("none")); }), "");
}

TEST(Files, FsyncFolder) {
  const TempFolder folder;
  EXPECT_NO_THROW(fsync_folder(folder.path()));
  EXPECT_NE(error_of([&] { fsync_folder(folder.file("none")); }), "");
}

}  // namespace
}  // namespace moh::io
