// Training data: compressed lines, folders of tokens whoever made them and however often they were interrupted, the
// order of a mix, a data set larger than memory.
#include "moh/data/token_mix.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "moh/base/error.h"
#include "moh/base/fields.h"
#include "moh/data/line_reader.h"
#include "moh/data/tokenize.h"
#include "tests/io/temp_folder.h"

namespace {

namespace fs = std::filesystem;
using moh::Json;
using moh::test::TempFolder;
using namespace moh::data;

void put(const std::string& path, const std::string& content) { std::ofstream(path, std::ios::binary) << content; }
std::string get(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string gzip(const std::string& text) {
  z_stream stream{};
  deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}
std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

// Documents of several lengths, one with everything that JSON escapes.
std::vector<std::string> documents(int count) {
  std::vector<std::string> all = {"quote \" backslash \\ newline \n and \xc3\xa4"};
  for (int i = 1; i < count; ++i)
    all.push_back(std::string(static_cast<std::size_t>(i * 37 % 500 + 1), static_cast<char>('a' + i % 26)));
  return all;
}
std::string json_lines(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& text : texts) all += Json({{"id", 1}, {"text", text}}).dump() + "\n";
  return all;
}

TEST(LineReader, ReadsPlainAndCompressedLines) {
  const TempFolder folder;
  std::string text;
  for (int i = 0; i < 40000; ++i)
    text += "line " + std::to_string(i) + std::string(static_cast<std::size_t>(i % 50), 'x') + "\n";
  text += std::string(3 << 20, 'z');  // a long line without an end, which compresses very well
  const std::string half = text.substr(0, 500000), rest = text.substr(500000);
  const std::map<std::string, std::string> forms = {{"plain", text},
                                                    {"gzip", gzip(text)},
                                                    {"zstd", zstd(text)},
                                                    {"gzip of two members", gzip(half) + gzip(rest)},
                                                    {"zstd of two frames", zstd(half) + zstd(rest)}};
  for (const auto& [name, content] : forms) {
    const std::string path = folder.path() + "/" + name;
    put(path, content);
    LineReader reader(path);
    std::string line, joined;
    while (reader.next(line)) joined += line + "\n";
    joined.pop_back();
    EXPECT_TRUE(joined == text) << name << ": " << joined.size() << " of " << text.size();
    if (name == "plain") continue;
    put(path, content.substr(0, content.size() / 2));
    EXPECT_THROW(
        {
          LineReader cut(path);
          while (cut.next(line)) {
          }
        },
        moh::Error)
        << name;
  }
  put(folder.path() + "/table.parquet", "PAR1....PAR1");
  EXPECT_THROW(LineReader(folder.path() + "/table.parquet"), moh::Error);
}

class Tokenize : public testing::Test {
 protected:
  void SetUp() override {
    texts_ = documents(60);
    put(in_.path() + "/a.jsonl", json_lines({texts_.begin(), texts_.begin() + 20}));
    put(in_.path() + "/b.jsonl.gz", gzip(json_lines({texts_.begin() + 20, texts_.begin() + 40})));
    put(in_.path() + "/c.jsonl.zst", zstd(json_lines({texts_.begin() + 40, texts_.begin() + 59})));
    put(in_.path() + "/d.txt", texts_[59]);
  }
  TokenizeResult tokenize(const std::string& out, int workers, const std::atomic<bool>& stop = false,
                          std::int64_t commit = 1 << 20, const std::function<void()>& watch = {}) {
    return tokenize_documents(*moh::text::bytes_tokenizer(), "",
                              {.inputs = {in_.path()}, .out = out, .workers = workers, .commit_tokens = commit}, stop,
                              [&](double, std::int64_t) {
                                if (watch) watch();
                              });
  }
  TempFolder in_, out_;
  std::vector<std::string> texts_;
};

TEST_F(Tokenize, WritesEveryDocumentOnceWhateverTheWorkers) {
  const auto result = tokenize(out_.path() + "/one", 1);
  std::string all;
  for (const auto& text : texts_) all += text;
  EXPECT_TRUE(result.done);
  EXPECT_EQ(result.documents, 60);
  EXPECT_EQ(result.tokens, static_cast<std::int64_t>(all.size()));
  const auto stream = TokenStream::open(out_.path() + "/one", nullptr, 256);
  std::string read;
  for (std::int64_t i = 0; i < stream.size(); ++i) read += static_cast<char>(stream[i]);
  EXPECT_EQ(read, all);
  ASSERT_TRUE(stream.has_documents());
  // The first document has 35 bytes: a window around its end.
  const auto first = static_cast<std::int64_t>(texts_[0].size());
  const auto numbers = stream.documents({first - 2}, 3);
  EXPECT_TRUE(at::equal(numbers, at::tensor({0, 0, 1, 1}, at::TensorOptions(at::kLong)).unsqueeze(0))) << numbers;
  tokenize(out_.path() + "/three", 3);
  for (const char* file : {"/ids.bin", "/documents.bin"})
    EXPECT_EQ(get(out_.path() + "/one" + file), get(out_.path() + "/three" + file));
  EXPECT_THROW(TokenStream::open(out_.path() + "/one", nullptr, 200), moh::Error);
}

TEST_F(Tokenize, GoesOnWhereItWasInterrupted) {
  tokenize(out_.path() + "/whole", 1);
  // Large documents, so that there are several chunks to stop between.
  std::vector<std::string> large;
  for (int i = 0; i < 12; ++i) large.emplace_back(1 << 20, static_cast<char>('a' + i));
  put(in_.path() + "/e.jsonl.gz", gzip(json_lines(large)));
  tokenize(out_.path() + "/reference", 1);
  const std::string out = out_.path() + "/parts";
  int calls = 0;
  TokenizeResult result;
  do {
    std::atomic<bool> stop{false};
    result = tokenize(out, 1, stop, 1 << 20, [&] { stop = true; });
    if (!result.done) {
      EXPECT_THROW(TokenStream::open(out, nullptr, 256), moh::Error);
      std::ofstream(out + "/ids.bin", std::ios::app) << "written after the last note, then killed";
    }
    ASSERT_LT(++calls, 20);
  } while (!result.done);
  EXPECT_GT(calls, 2);
  for (const char* file : {"/ids.bin", "/documents.bin"})
    EXPECT_EQ(get(out + file), get(out_.path() + "/reference" + file));
  EXPECT_THROW(tokenize(out_.path() + "/whole", 1), moh::Error) << "made from other files";
}

TEST_F(Tokenize, NamesTheBadLine) {
  put(in_.path() + "/bad.jsonl", "{\"text\": \"fine\"}\n{\"body\": 1}\n");
  try {
    tokenize(out_.path() + "/bad", 1);
    FAIL();
  } catch (const moh::Error& error) {
    EXPECT_NE(std::string(error.what()).find("bad.jsonl, line 2"), std::string::npos) << error.what();
  }
}

TokenStream numbers(const TempFolder& folder, const std::string& name, std::uint16_t first, int count) {
  std::string bytes;
  for (int i = 0; i < count; ++i) {
    const auto value = static_cast<std::uint16_t>(first + i);
    bytes.append(reinterpret_cast<const char*>(&value), 2);
  }
  put(folder.path() + "/" + name + ".bin", bytes);
  return TokenStream::open(folder.path() + "/" + name + ".bin", nullptr, 65536);
}

TEST(TokenMix, FollowsWeightsAndVisitsEveryWindowOnceAnEpoch) {
  const TempFolder folder;
  const TokenMix mix({{"a", numbers(folder, "a", 0, 4001), 3}, {"b", numbers(folder, "b", 10000, 8001), 1}});
  MixSampler sampler(mix, 4, 7), other(mix, 4, 7);
  std::int64_t from_a = 0;
  std::multiset<std::int64_t> seen;
  for (std::int64_t position = 0; position < 8192; ++position) {
    const auto ids = sampler.windows(position, 1).ids;
    const auto first = ids[0][0].item<std::int64_t>();
    EXPECT_TRUE(at::equal(ids[0] - first, at::arange(5, at::TensorOptions(at::kLong))));
    from_a += first < 10000 ? 1 : 0;
    if (first < 10000 && seen.size() < 1000) seen.insert(first);
  }
  EXPECT_NEAR(static_cast<double>(from_a) / 8192, 0.75, 1.0 / 4096);
  EXPECT_EQ(std::set<std::int64_t>(seen.begin(), seen.end()).size(), 1000U)
      << "an epoch of `a` visits each window once";
  // The position alone decides: in any order, in any batches.
  for (const std::int64_t position : {8000, 5, 4095, 4096}) {
    EXPECT_TRUE(at::equal(other.windows(position, 3).ids, sampler.windows(position, 3).ids));
  }
  EXPECT_FALSE(at::equal(MixSampler(mix, 4, 8).windows(0, 8).ids, sampler.windows(0, 8).ids));
  // One source: its own order, as without a mix.
  const TokenMix single(numbers(folder, "a", 0, 4001));
  MixSampler alone(single, 4, 7);
  WindowSampler plain(4001, 4, 7);
  EXPECT_TRUE(at::equal(alone.windows(990, 20).ids, single.sources()[0].stream.windows(plain.starts(990, 20), 4)));
  EXPECT_THROW(TokenMix({{"a", numbers(folder, "a", 0, 100), 0}}), moh::Error);
}

TEST(Permutation, IsOne) {
  for (const std::uint64_t size : {1U, 2U, 5U, 64U, 1000U, 70001U}) {
    const Permutation order(size, 3, 1), next(size, 3, 2);
    std::vector<bool> seen(size);
    std::uint64_t fixed = 0, same = 0;
    for (std::uint64_t i = 0; i < size; ++i) {
      const std::uint64_t place = order(i);
      ASSERT_LT(place, size);
      ASSERT_FALSE(seen[place]);
      seen[place] = true;
      fixed += place == i ? 1 : 0;
      same += place == next(i) ? 1 : 0;
    }
    if (size >= 1000) {
      EXPECT_LT(fixed, 12U);
      EXPECT_LT(same, 12U);
    }
  }
}

// 20 GB of ids, all zero, that take no room on the disk: a sparse file.
TEST(TokenStream, LargeDataOpenAtOnceAndTakeNoMemory) {
  const TempFolder folder;
  const std::int64_t tokens = 10'000'000'000;
  for (const char* name : {"/ids.bin", "/documents.bin"}) {
    const int file = ::open((folder.path() + name).c_str(), O_CREAT | O_WRONLY, 0644);
    ASSERT_EQ(::ftruncate(file, name[1] == 'i' ? tokens * 2 : 8), 0);
    ::close(file);
  }
  put(folder.path() + "/tokens.json",
      Json({{"ids", "uint16"}, {"tokens", tokens}, {"documents", 1}, {"vocab_size", 256}, {"done", true}}).dump());
  const auto resident = [] {
    std::ifstream status("/proc/self/statm");
    std::int64_t all = 0, pages = 0;
    status >> all >> pages;
    return pages * 4096;
  };
  const std::int64_t before = resident();
  const auto start = std::chrono::steady_clock::now();
  const TokenMix mix(TokenStream::open(folder.path(), nullptr, 256));
  MixSampler sampler(mix, 512, 1);
  std::set<std::int64_t> places;
  EXPECT_EQ(sampler.windows(0, 64).ids.sum().item<std::int64_t>(), 0);
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 1.0);
  EXPECT_LT(resident() - before, 64 << 20);
}

}  // namespace
