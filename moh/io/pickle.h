// Pickles read as data. Nothing in a pickle is ever called or imported: the names of classes and functions that it
// mentions are looked up in a list of those that torch.save needs, each of which has a fixed meaning here (a tensor, a
// dictionary, an object whose fields are kept); any other name is an Error that says which. Torch-free.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moh::io {

// The memory of one or more tensors, as a checkpoint names it.
struct PickledStorage {
  std::string dtype;  // as in safetensors.h
  std::span<const std::byte> bytes;
};

struct PickledTensor {
  std::string dtype;
  std::vector<std::int64_t> shape, stride;  // in elements
  std::int64_t offset = 0;                  // in elements, of the first one
  std::span<const std::byte> storage;       // every element lies inside
};

// A value; owned by the Pickle that it came from. The same value may be held in several places, and a list may hold
// itself: walk by names, or with a limit on depth.
struct PickleValue {
  enum class Kind { kNone, kBool, kInt, kFloat, kText, kBytes, kList, kDict, kTensor, kStorage, kName, kObject };

  Kind kind = Kind::kNone;
  std::int64_t integer = 0;  // kBool, kInt
  double number = 0;         // kFloat
  std::string text;          // kText, kBytes, kName ("module.name"), kObject (name of its class)
  std::vector<PickleValue*>
      items;                     // kList (tuples and sets too); kDict: key, value, key, value ...; kObject: arguments
  PickleValue* state = nullptr;  // kObject, kDict: fields that were set after construction
  std::unique_ptr<PickledTensor> tensor;
  std::unique_ptr<PickledStorage> storage;

  bool is(Kind which) const { return kind == which; }
  // kDict, or the fields of a kObject: the value of a text key, nullptr if absent. The last one wins, as in Python.
  const PickleValue* find(std::string_view key) const;
};

// "a dictionary", "text", "an object of class x", for messages.
std::string kind_name(const PickleValue& value);

class Pickle {
 public:
  // Bytes of the storage that a persistent id names: key and number of elements. Errors begin with "[pickle] LABEL: ".
  using Storages = std::function<std::span<const std::byte>(const std::string& key)>;

  Pickle(std::span<const std::byte> bytes, const std::string& label, const Storages& storages);
  ~Pickle();
  Pickle(Pickle&&) noexcept;
  Pickle& operator=(Pickle&&) noexcept;

  const PickleValue& root() const { return *root_; }

 private:
  std::vector<std::unique_ptr<PickleValue>> values_;
  const PickleValue* root_ = nullptr;
};

}  // namespace moh::io
