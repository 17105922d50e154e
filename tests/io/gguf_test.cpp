#include "moh/io/gguf.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <random>

#include "moh/base/fields.h"
#include "moh/io/checkpoint.h"
#include "moh/io/files.h"
#include "moh/io/gguf_blocks.h"
#include "moh/io/gguf_model.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::io {
namespace {

using test::bytes_of;
using test::error_of;
using test::TempFolder;

// The format's values, one after the other.
struct Bytes {
  std::string text = {};

  template <class T>
  Bytes& add(T value) {
    text.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& add_text(const std::string& value) {
    add<std::uint64_t>(value.size());
    text += value;
    return *this;
  }
};

enum : std::uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kText, kList, kU64, kI64, kF64 };

struct Tensor {
  std::string name;
  std::vector<std::uint64_t> dims;
  std::uint32_t type = 0;
  std::uint64_t offset = 0;
};

// A whole file: values that are written already, tensors, the alignment's padding, data.
struct File {
  std::uint32_t version = 3;
  std::vector<std::string> values = {};
  std::vector<Tensor> tensors = {};
  std::size_t data = 0, alignment = 32;
  std::optional<std::uint64_t> num_tensors = {}, num_values = {};

  File& value(const std::string& key, std::uint32_t type, const Bytes& bytes) {
    values.push_back(Bytes().add_text(key).add(type).text + bytes.text);
    return *this;
  }
  File& text(const std::string& key, const std::string& words) { return value(key, kText, Bytes().add_text(words)); }
  File& number(const std::string& key, std::uint32_t number) { return value(key, kU32, Bytes().add(number)); }

  std::string bytes() const {
    Bytes out{"GGUF"};
    out.add(version).add(num_tensors.value_or(tensors.size())).add(num_values.value_or(values.size()));
    for (const std::string& one : values) out.text += one;
    for (const Tensor& tensor : tensors) {
      out.add_text(tensor.name).add(static_cast<std::uint32_t>(tensor.dims.size()));
      for (const std::uint64_t size : tensor.dims) out.add(size);
      out.add(tensor.type).add(tensor.offset);
    }
    if (!tensors.empty()) out.text.resize((out.text.size() + alignment - 1) / alignment * alignment);
    for (std::size_t i = 0; i < data; ++i) out.text += static_cast<char>(i);
    return out.text;
  }
};

std::string error_reading(const std::string& file) {
  const std::string error = error_of([&] { GgufFile(bytes_of(file), "t"); });
  const std::string prefix = "[gguf] t: ";
  if (error.empty()) return "";
  return error.starts_with(prefix) ? error.substr(prefix.size()) : "UNEXPECTED START: " + error;
}

TEST(Gguf, ReadsValuesOfEveryType) {
  File file;
  file.value("u8", kU8, Bytes().add<std::uint8_t>(255)).value("i8", kI8, Bytes().add<std::int8_t>(-2));
  file.value("u16", kU16, Bytes().add<std::uint16_t>(65535)).value("i16", kI16, Bytes().add<std::int16_t>(-300));
  file.value("u32", kU32, Bytes().add<std::uint32_t>(4000000000)).value("i32", kI32, Bytes().add<std::int32_t>(-70000));
  file.value("u64", kU64, Bytes().add<std::uint64_t>(1ULL << 40)).value("i64", kI64, Bytes().add<std::int64_t>(-5));
  file.value("f32", kF32, Bytes().add(1.5F)).value("f64", kF64, Bytes().add(2.25)).text("text", "words");
  file.value("flag", kBool, Bytes().add<std::uint8_t>(1));
  file.value("big", kU64, Bytes().add(~std::uint64_t{0}));
  file.value("texts", kList, Bytes().add(kText).add<std::uint64_t>(2).add_text("a").add_text(""));
  file.value("numbers", kList, Bytes().add(kI32).add<std::uint64_t>(3).add(-1).add(0).add(7));
  file.value("floats", kList, Bytes().add(kF32).add<std::uint64_t>(1).add(0.5F));
  const std::string content = file.bytes();
  const GgufFile read(bytes_of(content), "memory");
  const std::pair<const char*, std::int64_t> integers[] = {{"u8", 255},        {"i8", -2},          {"u16", 65535},
                                                           {"i16", -300},      {"u32", 4000000000}, {"i32", -70000},
                                                           {"u64", 1LL << 40}, {"i64", -5}};
  for (const auto& [key, value] : integers) {
    EXPECT_EQ(read.integer(key), value) << key;
    EXPECT_EQ(read.number(key), static_cast<double>(value)) << key;
  }
  EXPECT_EQ(read.number("f32"), 1.5);
  EXPECT_EQ(read.number("f64"), 2.25);
  EXPECT_EQ(read.text("text"), "words");
  EXPECT_EQ(read.flag("flag"), true);
  EXPECT_EQ(read.texts("texts"), (std::vector<std::string_view>{"a", ""}));
  EXPECT_EQ(read.integers("numbers"), (std::vector<std::int64_t>{-1, 0, 7}));
  EXPECT_EQ(read.numbers("floats"), std::vector<double>{0.5});
  EXPECT_EQ(read.numbers("numbers"), (std::vector<double>{-1, 0, 7}));
  EXPECT_TRUE(read.is_list("texts") && !read.is_list("text") && !read.is_list("none"));
  EXPECT_EQ(read.keys().size(), 16U);
  // What is not there is nothing; what is of another type is an error.
  EXPECT_EQ(read.integer("none"), std::nullopt);
  EXPECT_TRUE(read.texts("none").empty() && read.integers("none").empty() && !read.has("none"));
  EXPECT_EQ(error_of([&] { read.integer("text"); }), "[gguf] memory: \"text\" must be an integer, got text");
  EXPECT_EQ(error_of([&] { read.text("texts"); }),
            "[gguf] memory: \"texts\" must be text, got a list with items of type text");
  EXPECT_EQ(error_of([&] { read.number("flag"); }), "[gguf] memory: \"flag\" must be a number, got true or false");
  EXPECT_EQ(error_of([&] { read.texts("numbers"); }),
            "[gguf] memory: \"numbers\" must be a list of texts, got a list with items of type an integer");
  EXPECT_EQ(error_of([&] { read.integer("big"); }), "[gguf] memory: \"big\" is too large: 18446744073709551615");
}

TEST(Gguf, ReadsTensorsWithTheirShapesTheOtherWayRound) {
  const std::string file =
      File{.version = 2, .tensors = {{"b", {32, 2}, 2, 32}, {"a", {3}, 0, 0}}, .data = 32 + 36}.bytes();
  const GgufFile read(bytes_of(file), "memory");
  ASSERT_EQ(read.tensors().size(), 2U);
  EXPECT_EQ(read.tensors()[0].name, "a");
  const GgufTensor* b = read.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->shape, (std::vector<std::int64_t>{2, 32}));
  EXPECT_STREQ(b->type->name, "Q4_0");
  EXPECT_EQ(b->bytes.size(), 36U);
  EXPECT_EQ(b->bytes.data(), bytes_of(file).data() + file.size() - 36);
  EXPECT_EQ(read.find("c"), nullptr);
}

TEST(Gguf, EveryRuleHasItsError) {
  const File good{.tensors = {{"a", {32}, 0, 0}, {"b", {32}, 0, 128}}, .data = 256};
  ASSERT_EQ(error_reading(good.bytes()), "");
  const auto changed = [&](const auto& change) {
    File file = good;
    change(file);
    return error_reading(file.bytes());
  };
  EXPECT_EQ(error_reading("GGML...."), "not a GGUF file, which begins with the letters GGUF");
  EXPECT_EQ(changed([](File& f) { f.version = 1; }),
            "of version 1; read are 2 and 3; convert it again with a newer llama.cpp");
  EXPECT_EQ(changed([](File& f) { f.version = 3 << 24; }),
            "written for big-endian machines, which is not read; convert it again with a newer llama.cpp");
  EXPECT_EQ(changed([](File& f) { f.text("k", "1").text("k", "2"); }), "the key \"k\" comes twice");
  EXPECT_EQ(changed([](File& f) { f.value("k", 13, Bytes()); }), "\"k\" has the unknown type 13");
  EXPECT_EQ(changed([](File& f) { f.value("k", kBool, Bytes().add<std::uint8_t>(2)); }), "\"k\" must be 0 or 1");
  EXPECT_EQ(changed([](File& f) { f.value("k", kList, Bytes().add(kList).add<std::uint64_t>(0)); }),
            "\"k\" is a list of lists, which no model has");
  EXPECT_EQ(changed([](File& f) { f.value("k", kList, Bytes().add(kF64).add(~std::uint64_t{0})); }),
            "\"k\" cannot have 18446744073709551615 items");
  EXPECT_EQ(changed([](File& f) { f.text(std::string(65536, 'k'), ""); }),
            "a key has 65536 bytes, the format allows 65535");
  EXPECT_EQ(changed([](File& f) { f.tensors[1].name = "a"; }), "two tensors are named \"a\"");
  EXPECT_EQ(changed([](File& f) { f.tensors[1].name = std::string(65, 'n'); }),
            "the name of a tensor has 65 bytes, the format allows 64");
  EXPECT_EQ(changed([](File& f) { f.tensors[1].dims = {}; }), "tensor \"b\" has 0 dimensions, expected 1 to 4");
  EXPECT_EQ(changed([](File& f) {
              f.tensors[1].dims = {1, 1, 1, 1, 1};
            }),
            "tensor \"b\" has 5 dimensions, expected 1 to 4");
  EXPECT_EQ(changed([](File& f) { f.tensors[1].dims = {1ULL << 63}; }), "tensor \"b\" has too many elements");
  EXPECT_EQ(changed([](File& f) {
              f.tensors[1].dims = {1ULL << 32, 1ULL << 32, 1};
            }),
            "tensor \"b\" has too many elements");
  EXPECT_EQ(changed([](File& f) { f.tensors[1].dims = {1ULL << 62}; }), "tensor \"b\" has too many elements");
  EXPECT_EQ(changed([](File& f) { f.tensors[1].type = 4; }),
            "tensor \"b\" has the unknown type 4; the file may be of a newer llama.cpp");
  EXPECT_EQ(changed([](File& f) {
              f.tensors[1] = {"b", {48}, 2, 128};
            }),
            "tensor \"b\" of type Q4_0 has rows of 48, which blocks of 32 do not fill");
  EXPECT_EQ(changed([](File& f) { f.tensors[1].offset = 120; }),
            "tensor \"b\" begins at 120, which is no multiple of the alignment of 32");
  EXPECT_EQ(changed([](File& f) { f.tensors[1].offset = 96; }),
            "tensor \"b\" overlaps another one at byte 96 of the data");
  EXPECT_EQ(changed([](File& f) { f.tensors[1].offset = 160; }),
            "tensor \"b\" leaves a hole: bytes 128 to 160 of the data are unused");
  EXPECT_EQ(changed([](File& f) { f.tensors[1].dims = {33}; }),
            "tensor \"b\" of 132 bytes at 128 ends beyond the data's 256 bytes; is the file cut short?");
  EXPECT_EQ(changed([](File& f) { f.data += 1; }), "1 bytes at the end belong to no tensor");
  for (const std::uint32_t alignment : {0U, 4U, 48U, 1U << 21}) {
    EXPECT_EQ(changed([&](File& f) { f.number("general.alignment", alignment); }),
              "\"general.alignment\" must be a power of two from 8 to 1048576, got " + std::to_string(alignment));
  }
  EXPECT_EQ(changed([](File& f) { f.text("general.alignment", "32"); }),
            "\"general.alignment\" must be an integer of 32 bits");
  // Another alignment that the file says is followed, and the last tensor needs no padding.
  EXPECT_EQ(error_reading(File{.tensors = {{"a", {1}, 0, 0}, {"b", {1}, 0, 64}}, .data = 68, .alignment = 64}
                              .number("general.alignment", 64)
                              .bytes()),
            "");
  EXPECT_EQ(error_reading(File{}.bytes()), "");  // metadata alone
  // Counts that the file cannot hold cost nothing.
  EXPECT_NE(changed([](File& f) { f.num_tensors = ~std::uint64_t{0}; }), "");
  EXPECT_NE(changed([](File& f) { f.num_values = ~std::uint64_t{0}; }), "");
  EXPECT_NE(changed([](File& f) { f.value("k", kList, Bytes().add(kText).add(~std::uint64_t{0})); }), "");
}

TEST(Gguf, EveryCutAndRandomDamageIsAResultOrAnError) {
  File file{.tensors = {{"a", {32, 2}, 2, 0}, {"b", {8}, 1, 64}}, .data = 80};
  file.text("general.architecture", "llama").number("llama.block_count", 2);
  file.value("list", kList, Bytes().add(kText).add<std::uint64_t>(2).add_text("x").add_text("y"));
  const std::string whole = file.bytes();
  ASSERT_EQ(error_reading(whole), "");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(error_reading(whole.substr(0, size)), "") << size;
  }
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    std::string damaged = whole;
    for (int i = 0; i < 3; ++i) damaged[random() % (whole.size() - 80)] = static_cast<char>(random());
    const std::string error = error_reading(damaged);
    EXPECT_FALSE(error.starts_with("UNEXPECTED")) << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

// The smallest file that describes a model.
File model() {
  File file{.tensors = {{"token_embd.weight", {32, 4}, 0, 0}}, .data = 512};
  file.text("general.architecture", "llama");
  for (const auto& [key, number] :
       std::initializer_list<std::pair<const char*, std::uint32_t>>{{"embedding_length", 32},
                                                                    {"attention.head_count", 4},
                                                                    {"feed_forward_length", 64},
                                                                    {"block_count", 1},
                                                                    {"context_length", 128}}) {
    file.number(std::string("llama.") + key, number);
  }
  return file.value("llama.attention.layer_norm_rms_epsilon", kF32, Bytes().add(1e-5F));
}

TEST(Gguf, ConfigurationIsMadeOfTheMetadata) {
  const TempFolder folder;
  const auto config_of = [&](const File& file) {
    write_file(folder.file("m.gguf"), file.bytes());
    return load_config(folder.file("m.gguf"));
  };
  const auto refused = [&](const File& file) { return error_of([&] { config_of(file); }); };
  const std::string place = "[gguf] " + folder.file("m.gguf") + ": ";
  const Json config = config_of(model());
  EXPECT_EQ(config["rms_norm_eps"], 1e-5);  // not 9.999999747378752e-06
  EXPECT_EQ(config["model_type"], "llama");
  EXPECT_EQ(config["num_key_value_heads"], 4);
  EXPECT_EQ(config["vocab_size"], 4);
  EXPECT_EQ(config["tie_word_embeddings"], true);
  EXPECT_EQ(config["rope_theta"], 1e4);
  EXPECT_FALSE(config.contains("eos_token_id"));

  File tokens = model();
  tokens.number("tokenizer.ggml.bos_token_id", 1).number("tokenizer.ggml.eos_token_id", 2);
  tokens.number("tokenizer.ggml.eot_token_id", 3);
  EXPECT_EQ(config_of(tokens)["eos_token_id"], Json({2, 3}));
  EXPECT_EQ(config_of(tokens)["bos_token_id"], 1);
  EXPECT_EQ(config_of(model().number("llama.attention.sliding_window", 16))["model_type"], "mistral");
  const auto heads = [](std::int32_t a, std::int32_t b) {
    return Bytes().add(kI32).add<std::uint64_t>(2).add(a).add(b);
  };
  EXPECT_EQ(config_of(model().value("llama.attention.head_count_kv", kList, heads(2, 2)))["num_key_value_heads"], 2);
  EXPECT_EQ(refused(model().value("llama.attention.head_count_kv", kList, heads(2, 4))),
            place + "`llama.attention.head_count_kv` differs from layer to layer, which is not supported");
  EXPECT_EQ(refused(model().number("llama.expert_count", 8)), place + "mixtures of experts are not supported");
  EXPECT_EQ(refused(model().number("llama.attention.value_length", 5)),
            place + "keys and values of different lengths are not supported");
  File other = model();
  other.values[0] = File().text("general.architecture", "mamba").values[0];
  EXPECT_EQ(
      refused(other),
      place +
          "architecture \"mamba\" is not supported; supported: llama, smollm3, qwen2, qwen3, gemma, gemma2, gemma3, phi3, "
          "olmo2, granite");
  File missing = model();
  missing.values.erase(missing.values.begin() + 1);
  EXPECT_EQ(refused(missing), place + "`llama.embedding_length` is missing");
  File factors = model();
  factors.tensors.push_back({"rope_freqs.weight", {4}, 0, 512});
  factors.data += 16;  // 0x10203040 and the like: no rule gives them
  EXPECT_TRUE(refused(factors).starts_with(place + "`rope_freqs.weight` number ")) << refused(factors);
}

TEST(Gguf, BlocksAreTheTensorsNumbersInTheSameOrderOfRows) {
  const TempFolder folder;
  File file = model();
  const std::uint64_t start = (file.data + 31) / 32 * 32;
  file.tensors.push_back({"blk.0.attn_q.weight", {32, 8}, 8, start});                // Q8_0: rows are llama.cpp's
  file.tensors.push_back({"blk.0.attn_v.weight", {32, 8}, 2, start + 8 * 34 + 16});  // Q4_0
  file.tensors.push_back({"blk.0.ffn_up.weight", {32, 3}, 3, start + 8 * 34 + 16 + 8 * 18 + 16});  // Q4_1
  file.data = start + 8 * 34 + 16 + 8 * 18 + 16 + 3 * 20;
  write_file(folder.file("m.gguf"), file.bytes());
  const GgufModel read(folder.file("m.gguf"));
  std::map<std::string, at::Tensor> numbers;
  for (const auto& [name, tensor] : read.tensors(at::kFloat)) numbers.emplace(name, tensor);
  const auto all = read.blocks({"Q8_0", "Q4_0", "Q4_1"});
  ASSERT_EQ(all.size(), 3U);
  EXPECT_EQ(read.blocks({"Q4_0"}).size(), 1U);
  for (const StoredBlocks& blocks : all) {
    ASSERT_TRUE(numbers.contains(blocks.name)) << blocks.name;
    const at::Tensor& expected = numbers.at(blocks.name);
    const at::Tensor bytes = blocks.bytes.contiguous();
    const at::Tensor got = at::empty_like(expected);
    const std::uint32_t id = blocks.type == "Q8_0" ? 8 : blocks.type == "Q4_0" ? 2 : 3;
    dequantize(*find_block_type(id), {static_cast<const std::byte*>(bytes.const_data_ptr()), bytes.nbytes()},
               got.mutable_data_ptr<float>());
    EXPECT_TRUE(at::equal(got, expected)) << blocks.name;
  }
}

TEST(Gguf, AFolderMeansTheOneModelInIt) {
  const TempFolder folder;
  write_file(folder.file("._a.gguf"), "macOS");
  write_file(folder.file("notes.txt"), "");
  EXPECT_EQ(find_gguf(folder.path()), std::nullopt);
  write_file(folder.file("a.gguf"), model().bytes());
  EXPECT_EQ(find_gguf(folder.path()), folder.file("a.gguf"));
  EXPECT_EQ(find_gguf(folder.file("a.gguf")), folder.file("a.gguf"));
  EXPECT_EQ(find_gguf(folder.file("notes.txt")), std::nullopt);
  write_file(folder.file("b.gguf"), model().bytes());
  EXPECT_EQ(error_of([&] { find_gguf(folder.path()); }),
            "[gguf] " + folder.path() + " holds several models (a.gguf, b.gguf); name the file instead of the folder");
  write_file(folder.file("model.safetensors"), "");  // weights of the folder's own
  EXPECT_EQ(find_gguf(folder.path()), std::nullopt);
  // A model in parts.
  EXPECT_EQ(gguf_parts(folder.file("a.gguf")).size(), 1U);
  write_file(folder.file("c-00001-of-00002.gguf"), "");
  EXPECT_EQ(error_of([&] { gguf_parts(folder.file("c-00001-of-00002.gguf")); }),
            "[gguf] " + folder.file("c-00002-of-00002.gguf") + " is missing: part 2 of 2 of the model");
  EXPECT_EQ(error_of([&] { gguf_parts(folder.file("c-00002-of-00002.gguf")); }),
            "[gguf] " + folder.file("c-00002-of-00002.gguf") + " is part 2 of 2 of a model; name the first part");
}

TEST(Gguf, TypesThatAreNotReadAreNamed) {
  const TempFolder folder;
  File file = model();
  file.tensors.push_back({"blk.0.ffn_up.weight", {256}, 19, 512});
  file.data += 50;
  write_file(folder.file("m.gguf"), file.bytes());
  const std::string error = error_of([&] { load_tensors(folder.file("m.gguf")); });
  EXPECT_TRUE(error.starts_with("[gguf] " + folder.file("m.gguf") +
                                ": tensor \"blk.0.ffn_up.weight\" is of type IQ1_S, which is not read;"))
      << error;
}

}  // namespace
}  // namespace moh::io
