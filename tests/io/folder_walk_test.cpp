#include "moh/io/folder_walk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "moh/io/companions.h"
#include "moh/io/files.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::io {
namespace {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

Names relative(const FolderFiles& found, const std::string& folder) {
  Names names;
  for (const std::string& path : found.paths) names.push_back(path.substr(folder.size() + 1));
  return names;
}

TEST(FolderWalk, FollowsLinksButNoLoopsAndPassesOverWhatIsHidden) {
  const test::TempFolder folder, outside;
  fs::create_directories(folder.file("b/inner"));
  fs::create_directories(folder.file(".git"));
  fs::create_directories(folder.file("__MACOSX"));
  for (const char* name : {"a.png", "B.JPG", "b/c.jpeg", "b/inner/d.png", "b/notes.txt", ".hidden.png", "._a.png",
                           ".git/e.png", "__MACOSX/f.png"}) {
    write_file(folder.file(name), "x");
  }
  write_file(outside.file("g.png"), "x");
  fs::create_directory_symlink(outside.path(), folder.file("linked"));
  fs::create_symlink(outside.file("g.png"), folder.file("h.png"));
  fs::create_directory_symlink(folder.path(), folder.file("b/inner/loop"));
  fs::create_symlink(folder.file("nothing"), folder.file("i.png"));

  const FolderFiles all = files_in(folder.path(), /*deep=*/true, is_picture_name);
  EXPECT_EQ(relative(all, folder.path()),
            (Names{"B.JPG", "a.png", "b/c.jpeg", "b/inner/d.png", "h.png", "linked/g.png"}));
  EXPECT_EQ(all.others, 2);  // the notes and the link to nothing
  EXPECT_EQ(relative(files_in(folder.path(), false, is_picture_name), folder.path()),
            (Names{"B.JPG", "a.png", "h.png"}));
  EXPECT_EQ(folders_in(folder.path()), (Names{"b", "linked"}));
  EXPECT_EQ(test::error_of([&] { folders_in(folder.file("none")); }),
            "[files] " + folder.file("none") + ": cannot be read: No such file or directory");
}

TEST(Companions, AreAllFilesButWeightsConfigurationCodeAndTraining) {
  const test::TempFolder from, to;
  fs::create_directories(from.file("additional_chat_templates"));
  fs::create_directories(from.file("original"));
  fs::create_directories(from.file("checkpoints/step-1"));
  fs::create_directories(from.file("inner"));
  const Names kept = {"LICENSE",
                      "README.md",
                      "additional_chat_templates/tool.jinja",
                      "chat_template.jinja",
                      "generation_config.json",
                      "tokenizer.model"};
  for (const std::string& name : kept) write_file(from.file(name), name);
  for (const char* name :
       {"config.json", "model.safetensors", "model.safetensors.index.json", "x.gguf", "pytorch_model.bin",
        "modeling_x.py", "run.json", "log.jsonl", ".gitattributes", "original/params.json",
        "original/consolidated.00.pth", "checkpoints/step-1/note.txt", "inner/config.json", "inner/note.txt"}) {
    write_file(from.file(name), "x");
  }
  fs::create_directory_symlink(from.path(), from.file("loop"));
  fs::create_directories(from.file("out"));  // the folder that is written, inside the other
  write_file(from.file("out/old.txt"), "x");
  const auto any = [](const std::string&) { return true; };

  copy_model_files(from.path(), to.path());
  Names expected = kept;
  expected.push_back("out/old.txt");
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(relative(files_in(to.path(), true, any), to.path()), expected);
  for (const std::string& name : kept) EXPECT_EQ(read_file(to.file(name)), name);

  copy_model_files(from.path(), from.file("out"));
  EXPECT_FALSE(fs::exists(from.file("out/out")));
  EXPECT_EQ(read_file(from.file("out/LICENSE")), "LICENSE");
  copy_model_files(from.file("x.gguf"), to.path());  // no folder: nothing
  copy_model_files("", to.path());
}

}  // namespace
}  // namespace moh::io
