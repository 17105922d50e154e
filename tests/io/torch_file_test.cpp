// Checkpoints written by torch.save itself are the oracle; the pickles that no one should trust are written by hand.
#include "moh/io/torch_file.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "moh/io/checkpoint.h"
#include "moh/io/files.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::io {
namespace {

using test::bytes_of;
using test::error_of;
using test::TempFolder;
using Kind = PickleValue::Kind;

constexpr const char* kScript = R"(
import argparse, collections, os, sys, torch
folder = sys.argv[1]
base = torch.arange(24, dtype=torch.float32)
state = collections.OrderedDict()
state["plain"] = base.reshape(4, 6) * 0.5
state["transposed"] = base.reshape(4, 6).t()
state["part"] = base.reshape(4, 6)[1:3, ::2]
state["parameter"] = torch.nn.Parameter(torch.ones(3, 2))
state["scalar"] = torch.tensor(7, dtype=torch.int64)
state["empty"] = torch.zeros(0, 5)
for name in ("float64", "float16", "bfloat16", "int32", "int16", "int8", "uint8"):
    state[name] = torch.arange(5).to(getattr(torch, name))
state["bool"] = torch.tensor([True, False, True])
model = torch.nn.Linear(2, 3)
args = argparse.Namespace(lr=1e-3, name="x", device=torch.device("cpu"))
try:
    import numpy
    args.best = numpy.float64(0.5)
except ImportError:
    pass
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(1, 2)).sum().backward()
optimizer.step()
torch.save(state, folder + "/bare.pth")
torch.save({"module." + name: value for name, value in state.items()}, folder + "/wrapped.pth")
torch.save({"model": state, "ema": {name: value for name, value in state.items()}, "opt": optimizer.state_dict(),
            "args": args, "epoch": 3, "loss": 0.25, "big": 1 << 40, "negative": -5, "none": None, "flag": True,
            "text": "h\u00e4", "tuple": (1, [2, {3}])}, folder + "/nested.pth")
torch.save(model.state_dict(), folder + "/module.pth")  # carries _metadata as a field of the OrderedDict
for protocol in (3, 4, 5):
    torch.save(state, folder + f"/protocol{protocol}.pth", pickle_protocol=protocol)
torch.save({"whole": model}, folder + "/object.pth")
torch.save(state, folder + "/legacy.pth", _use_new_zipfile_serialization=False)
torch.save({"shown": torch.ones(1).expand(10 ** 12)}, folder + "/expanded.pth")
torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder + "/script.pth")
class Wants:
    def __reduce__(self):
        return os.system, ("touch " + folder + "/executed",)
torch.save({"model": state, "epoch": Wants()}, folder + "/evil.pth")
)";

// Files of torch.save, written once for all tests.
const TempFolder& written() {
  static const TempFolder folder;
  static const bool done = [] {
    write_file(folder.file("write.py"), std::string_view(kScript));
    const std::string command = std::string(MOH_PYTHON) + " -W ignore " + folder.file("write.py") + " " + folder.path();
    return std::system(command.c_str()) == 0;
  }();
  EXPECT_TRUE(done) << "torch.save did not run";
  return folder;
}

const std::vector<std::string> kKeys = {"ema", "model"};

void expect_state(const NamedTensors& tensors) {
  std::map<std::string, at::Tensor> by_name(tensors.begin(), tensors.end());
  ASSERT_EQ(by_name.size(), 14u);
  EXPECT_EQ(tensors[0].first, "plain");  // the file's order
  const at::Tensor base = at::arange(24, at::kFloat).reshape({4, 6});
  const auto same = [&](const char* name, const at::Tensor& expected) {
    EXPECT_EQ(by_name[name].scalar_type(), expected.scalar_type()) << name;
    EXPECT_TRUE(by_name[name].is_contiguous()) << name;
    EXPECT_TRUE(at::equal(by_name[name], expected)) << name << by_name[name];
  };
  same("plain", base * 0.5);
  same("transposed", base.t().contiguous());
  same("part", at::tensor({6.F, 8.F, 10.F, 12.F, 14.F, 16.F}).reshape({2, 3}));
  same("parameter", at::ones({3, 2}));
  same("scalar", at::scalar_tensor(7, at::kLong));
  same("empty", at::zeros({0, 5}));
  for (const auto& [name, type] : std::map<const char*, at::ScalarType>{{"float64", at::kDouble},
                                                                        {"float16", at::kHalf},
                                                                        {"bfloat16", at::kBFloat16},
                                                                        {"int32", at::kInt},
                                                                        {"int16", at::kShort},
                                                                        {"int8", at::kChar},
                                                                        {"uint8", at::kByte}}) {
    same(name, at::arange(5).to(type));
  }
  same("bool", at::tensor({1, 0, 1}).to(at::kBool));
}

TEST(TorchFile, ReadsWhatTorchSaveWrites) {
  for (const char* name : {"bare", "wrapped", "nested", "protocol3", "protocol4", "protocol5"}) {
    SCOPED_TRACE(name);
    expect_state(load_torch_tensors(written().file(std::string(name) + ".pth"), kKeys));
  }
  EXPECT_EQ(load_torch_tensors(written().file("module.pth"), kKeys).size(), 2u);
}

TEST(TorchFile, KeepsWhatElseACheckpointHolds) {
  const TorchFile file(written().file("nested.pth"));
  const PickleValue& root = file.root();
  EXPECT_EQ(file.first_key(kKeys), "ema");
  EXPECT_EQ(file.first_key({"model", "ema"}), "model");
  EXPECT_EQ(file.first_key({"nothing"}), std::nullopt);
  EXPECT_EQ(root.find("epoch")->integer, 3);
  EXPECT_EQ(root.find("loss")->number, 0.25);
  EXPECT_EQ(root.find("big")->integer, std::int64_t{1} << 40);
  EXPECT_EQ(root.find("negative")->integer, -5);
  EXPECT_TRUE(root.find("none")->is(Kind::kNone));
  EXPECT_EQ(root.find("flag")->integer, 1);
  EXPECT_EQ(root.find("text")->text, "h\u00e4");
  ASSERT_EQ(root.find("tuple")->items.size(), 2u);
  EXPECT_EQ(root.find("tuple")->items[1]->items[0]->integer, 2);
  EXPECT_EQ(root.find("absent"), nullptr);
  const PickleValue* args = root.find("args");
  EXPECT_EQ(args->text, "argparse.Namespace");
  EXPECT_EQ(args->find("lr")->number, 1e-3);
  EXPECT_EQ(args->find("name")->text, "x");
  EXPECT_TRUE(root.find("opt")->find("state")->is(Kind::kDict));
}

TEST(TorchFile, RefusesWithoutRunningAnything) {
  const auto error = [](const std::string& name) {
    return error_of([&] { load_torch_tensors(written().file(name + ".pth"), kKeys); });
  };
  EXPECT_NE(error("evil").find("wants to use \"posix.system\""), std::string::npos) << error("evil");
  EXPECT_FALSE(std::filesystem::exists(written().file("executed")));
  EXPECT_NE(error("object").find("wants to use \"torch.nn.modules.linear.Linear\""), std::string::npos);
  EXPECT_NE(error("legacy").find("before 1.6"), std::string::npos) << error("legacy");
  EXPECT_NE(error("expanded").find("reaches beyond its storage"), std::string::npos) << error("expanded");
  EXPECT_NE(error("script").find("TorchScript"), std::string::npos) << error("script");
  for (const char* name : {"evil", "object", "legacy", "expanded", "script"}) {
    EXPECT_EQ(error(name).find('\n'), std::string::npos);
    EXPECT_TRUE(is_torch_file(written().file(std::string(name) + ".pth"))) << name;
  }
  EXPECT_FALSE(is_torch_file(written().file("write.py")));
  EXPECT_NE(error_of([&] {
              load_torch_tensors(written().file("nested.pth"), {"args", "opt"});
            }).find("\"state\" must be a tensor"),
            std::string::npos);
  EXPECT_NE(
      error_of([&] { load_torch_tensors(written().file("nested.pth"), {"weights"}); }).find("neither a dictionary"),
      std::string::npos);
}

std::string error_reading(const std::string& content) {
  return error_of([&] { TorchFile(bytes_of(content), "t").tensors(kKeys); });
}

TEST(TorchFile, ATruncatedFileIsOneError) {
  const std::string whole = read_file(written().file("nested.pth"));
  ASSERT_EQ(error_reading(whole), "");
  for (std::size_t size = 0; size < whole.size(); size += size < 64 ? 1 : 61) {
    const std::string error = error_reading(whole.substr(0, size));
    EXPECT_NE(error, "") << size;
    EXPECT_EQ(error.find('\n'), std::string::npos);
  }
  EXPECT_NE(error_reading(whole.substr(0, whole.size() / 2)).find("cut short"), std::string::npos);
}

TEST(TorchFile, DamagedBytesNeverCrash) {
  std::mt19937 random(1);
  for (const char* name : {"nested.pth", "protocol4.pth"}) {
    const std::string whole = read_file(written().file(name));
    for (int round = 0; round < 3000; ++round) {
      std::string copy = whole;
      // The tables lie at the end and the pickle at the beginning.
      const std::size_t begin = round % 2 == 0 ? 0 : copy.size() - std::min<std::size_t>(copy.size(), 2000);
      for (unsigned i = 0; i <= random() % 4; ++i) {
        copy[begin + random() % std::min<std::size_t>(2000, copy.size() - begin)] = static_cast<char>(random());
      }
      const std::string error = error_reading(copy);  // none where the damage hit the content of a tensor
      EXPECT_EQ(error.find('\n'), std::string::npos);
    }
  }
}

// ---- pickles by hand ----

std::string pickle_error(const std::string& content) {
  const std::string memory(64, '\0');
  return error_of([&] { Pickle(bytes_of(content), "t", [&](const std::string&) { return bytes_of(memory); }); });
}

TEST(Pickle, NamesOutsideTheListAreRefusedInEveryForm) {
  for (const char* text : {"cos\nsystem\n(tR.", "cbuiltins\neval\n.", "cbuiltins\nexec\n)\x81."}) {
    EXPECT_NE(pickle_error(text).find("wants to use"), std::string::npos) << text;
  }
  const std::string stack_global("\x80\x04\x8c\x02os\x8c\x06system\x93.", 14 + 1);
  EXPECT_NE(pickle_error(stack_global).find("\"os.system\""), std::string::npos) << pickle_error(stack_global);
  // Opcodes that make objects by other ways are not known at all: INST, OBJ, EXT1, NEWOBJ_EX.
  for (const char* text : {"(ios\nsystem\n.", "(cos\nsystem\no.", "\x82\x01.", "N\x92."}) {
    EXPECT_NE(pickle_error(text), "") << text;
  }
}

TEST(Pickle, WideIntegersArePassedOver) {
  const auto value = [](const std::string& content) {
    const Pickle pickle(bytes_of(content), "t", [](const std::string&) { return std::span<const std::byte>(); });
    return std::pair(pickle.root().kind, pickle.root().integer);
  };
  using Kind = PickleValue::Kind;
  EXPECT_EQ(value("\x8a\x09xxxxxxxxx.").first, Kind::kObject);
  EXPECT_EQ(value(std::string("\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\0.", 12)).first, Kind::kObject);  // 2^64 - 1
  EXPECT_EQ(value("\x8a\x09\xfe\xff\xff\xff\xff\xff\xff\xff\xff."), std::pair(Kind::kInt, std::int64_t{-2}));
  EXPECT_EQ(value(std::string("\x8a\x09\x07\0\0\0\0\0\0\0\0.", 12)), std::pair(Kind::kInt, std::int64_t{7}));
}

TEST(Pickle, ValuesThatDoNotFitAreErrors) {
  const struct {
    std::string content, error;
  } kCases[] = {
      {"", "ends early"},
      {".", "a value is missing"},
      {"N", "ends early"},
      {"(.", "a value is missing"},
      {"t.", "a mark is missing"},
      {"0.", "a value is missing"},
      {std::string("h\x05.", 3), "not there"},
      {"NNa.", "cannot be None"},
      {"}(Nu.", "a key without a value"},
      {"NNR.", "a called value cannot be None"},
      {"ctorch\nfloat32\n)R.", "cannot be called"},
      {"ctorch._utils\n_rebuild_tensor_v2\n)R.", "lacks its storage"},
      {"ctorch._utils\n_rebuild_parameter\n(NtR.", "a parameter cannot be None"},
      {"NQ.", "not named as torch.save does"},
      {"\x80\x63.", "protocol 99"},
      {"X\xff\xff\xff\xff.", "ends early"},
      {std::string("\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", 10), "ends early"},
      {"I1\n.", "opcode 73"},
  };
  for (const auto& [content, error] : kCases) {
    EXPECT_NE(pickle_error(content).find(error), std::string::npos) << error << " / " << pickle_error(content);
  }
}

// ('storage', torch.FloatStorage, '0', 'cpu', 16) as a storage, then a tensor of `size` and `stride` from `offset` on.
std::string tensor_pickle(const std::string& offset, const std::string& size, const std::string& stride) {
  return "ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x01"
         "0U\x03"
         "cpuK\x10tQ" +
         offset + size + stride + "\x89NtR.";
}

TEST(Pickle, TensorsStayInsideTheirStorage) {
  const auto number = [](int n) { return std::string("K") + static_cast<char>(n); };
  const auto pair = [&](int a, int b) { return "(" + number(a) + number(b) + "t"; };
  EXPECT_EQ(pickle_error(tensor_pickle(std::string("K\0", 2), pair(4, 4), pair(4, 1))), "");
  EXPECT_EQ(pickle_error(tensor_pickle(std::string("K\0", 2), pair(4, 4), pair(1, 4))), "");
  EXPECT_EQ(pickle_error(tensor_pickle(std::string("K\0", 2), pair(100, 0), pair(1, 1))), "");
  const std::string beyond = "reaches beyond its storage";
  EXPECT_NE(pickle_error(tensor_pickle(number(1), pair(4, 4), pair(4, 1))).find(beyond), std::string::npos);
  EXPECT_NE(pickle_error(tensor_pickle(std::string("K\0", 2), pair(4, 5), pair(4, 1))).find(beyond), std::string::npos);
  EXPECT_NE(pickle_error(tensor_pickle(std::string("K\0", 2), pair(40, 40), pair(0, 0))).find(beyond),
            std::string::npos);
  EXPECT_NE(pickle_error(tensor_pickle("J\xff\xff\xff\xff", pair(1, 1), pair(1, 1))).find("damaged"),
            std::string::npos);
  EXPECT_NE(pickle_error(tensor_pickle(std::string("K\0", 2), "(J\xff\xff\xff\xffK\x01t", pair(1, 1))).find("damaged"),
            std::string::npos);
  // 2^62 * 4 elements overflow.
  const std::string huge = std::string("\x8a\x08\0\0\0\0\0\0\0\x40", 10);
  EXPECT_NE(pickle_error(tensor_pickle(std::string("K\0", 2), "(" + huge + "K\x04t", pair(1, 1))).find(beyond),
            std::string::npos);
}

}  // namespace
}  // namespace moh::io
