// Golden files: every *.safetensors of a folder is a case that describes itself in its metadata. Knows no file by name
// and no shape by heart. MOH_GOLDEN_DIR names the folder; without it ../shared/golden beside the checkout if that is
// there, else the project's own tests/golden/data.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "moh/kernels/backend.h"
#include "tests/golden/golden_file.h"

namespace moh::golden {
namespace {

namespace fs = std::filesystem;

int files_compared = 0;

std::string golden_folder() {
  if (const char* folder = std::getenv("MOH_GOLDEN_DIR")) return folder;
  const std::string shared = MOH_SOURCE_DIR "/../shared/golden";
  return fs::is_directory(shared) ? shared : MOH_SOURCE_DIR "/tests/golden/data";
}

class Golden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {  // a backend forced by name that this CPU lacks
    const char* name = std::getenv("MOH_BACKEND");
    for (const auto& backend : kernels::backends()) {
      if (name == nullptr || backend.name != std::string(name) || backend.unavailable_reason().empty()) continue;
      GTEST_SKIP() << name << ": " << backend.unavailable_reason();
    }
  }
};

TEST_P(Golden, Matches) {
  const GoldenFile file(GetParam());
  const auto found = kinds().find(file.kind);
  ASSERT_NE(found, kinds().end()) << file.path << ": no code handles the kind `" << file.kind << "`";
  const int before = tensors_compared;
  found->second(file);
  EXPECT_GT(tensors_compared, before) << file.path << ": nothing was compared";
  ++files_compared;
}

std::vector<std::string> golden_files() {
  std::vector<std::string> files;
  if (fs::is_directory(golden_folder())) {
    for (const auto& entry : fs::directory_iterator(golden_folder())) {
      if (entry.is_regular_file() && entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

INSTANTIATE_TEST_SUITE_P(Files, Golden, testing::ValuesIn(golden_files()), [](const auto& info) {
  std::string name = fs::path(info.param).stem().string();
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
});

TEST(GoldenFolder, HasFiles) { EXPECT_FALSE(golden_files().empty()) << golden_folder() << " has no golden files"; }

class Summary : public testing::Environment {
 public:
  void TearDown() override {
    std::cout << "golden: " << files_compared << " files, " << tensors_compared << " tensors compared from "
              << golden_folder() << "\n";
  }
};
const auto* const summary = testing::AddGlobalTestEnvironment(new Summary);

}  // namespace
}  // namespace moh::golden
