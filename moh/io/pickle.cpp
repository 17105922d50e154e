// The pickle machine: a stack, marks, a memo, and one value made for each opcode at most, so that memory and time stay
// proportional to the file.
#include "moh/io/pickle.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <unordered_map>

#include "moh/base/error.h"
#include "moh/io/name_text.h"
#include "moh/io/pickle_names.h"
#include "moh/io/safetensors.h"

namespace moh::io {
namespace {

using Kind = PickleValue::Kind;
using Values = std::vector<PickleValue*>;

constexpr std::size_t kMaxValues = 4'000'000;  // a checkpoint of 100,000 tensors needs 2 million
constexpr std::size_t kMaxDimensions = 64;     // torch's own limit

const AllowedName* allowed(std::string_view name) {
  for (const AllowedName& entry : kAllowedNames)
    if (entry.name == name) return &entry;
  return nullptr;
}

class Machine {
 public:
  Machine(std::span<const std::byte> bytes, const std::string& label, const Pickle::Storages& storages,
          std::vector<std::unique_ptr<PickleValue>>& owned)
      : bytes_(bytes), prefix_("[pickle] " + label + ": "), storages_(storages), owned_(owned) {}

  const PickleValue* run() {
    for (;;) {
      const auto opcode = static_cast<unsigned char>(take(1)[0]);
      if (opcode == '.') return pop();
      step(opcode);
    }
  }

 private:
  template <class... What>
  [[noreturn]] void complain(const What&... what) const {
    fail(prefix_, what...);
  }

  // ---- reading ----

  std::span<const std::byte> take(std::uint64_t count) {
    if (count > bytes_.size() - place_) complain("the pickle ends early; is the file cut short?");
    const auto taken = bytes_.subspan(place_, count);
    place_ += count;
    return taken;
  }
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view text(std::uint64_t count) {
    const auto bytes = take(count);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  std::string_view line() {
    const std::string_view rest(reinterpret_cast<const char*>(bytes_.data()) + place_, bytes_.size() - place_);
    const std::size_t end = rest.find('\n');
    if (end == std::string_view::npos) complain("the pickle ends early; is the file cut short?");
    place_ += end + 1;
    return rest.substr(0, end);
  }

  // ---- the stack ----

  PickleValue* make(Kind kind) {
    if (owned_.size() >= kMaxValues) complain("more than ", kMaxValues, " values");
    owned_.push_back(std::make_unique<PickleValue>());
    owned_.back()->kind = kind;
    return owned_.back().get();
  }
  void push(PickleValue* value) { stack_.push_back(value); }
  void push_integer(Kind kind, std::int64_t integer) {
    PickleValue* value = make(kind);
    value->integer = integer;
    push(value);
  }
  void push_text(Kind kind, std::string_view content) {
    PickleValue* value = make(kind);
    value->text = content;
    push(value);
  }
  void push_list(Values items) {
    PickleValue* value = make(Kind::kList);
    value->items = std::move(items);
    push(value);
  }
  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  PickleValue* pop() {
    if (stack_.size() <= floor()) complain("damaged: a value is missing");
    PickleValue* value = stack_.back();
    stack_.pop_back();
    return value;
  }
  PickleValue* top() {
    if (stack_.size() <= floor()) complain("damaged: a value is missing");
    return stack_.back();
  }
  Values pop_to_mark() {
    if (marks_.empty()) complain("damaged: a mark is missing");
    Values values(stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return values;
  }
  Values pop_many(std::size_t count) {
    if (stack_.size() - floor() < count) complain("damaged: a value is missing");
    Values values(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return values;
  }
  PickleValue* expect(PickleValue* value, Kind kind, const char* what) {
    if (value->kind != kind) complain("damaged: ", what, " cannot be ", kind_name(*value));
    return value;
  }
  std::int64_t integer(const PickleValue* value, const char* what) {
    if (!value->is(Kind::kInt)) complain("damaged: ", what, " must be a number, got ", kind_name(*value));
    return value->integer;
  }

  void remember(std::uint64_t place) { memo_[place] = top(); }
  void recall(std::uint64_t place) {
    const auto found = memo_.find(place);
    if (found == memo_.end()) complain("damaged: it refers to a value that is not there");
    push(found->second);
  }

  void append(PickleValue* list, const Values& values) {
    // Sets that ADDITEMS fills are lists here; subclasses of dict and list that a file may name are dictionaries.
    expect(list, Kind::kList, "the target of an appended value");
    list->items.insert(list->items.end(), values.begin(), values.end());
  }
  void set(PickleValue* dict, const Values& values) {
    expect(dict, Kind::kDict, "the target of a stored value");
    if (values.size() % 2 != 0) complain("damaged: a key without a value");
    dict->items.insert(dict->items.end(), values.begin(), values.end());
  }

  // ---- names and what they mean ----

  void push_name(std::string_view module, std::string_view name) {
    if (module == "__builtin__") module = "builtins";  // Python 2's name, which protocol 2 keeps
    const std::string full = std::string(module) + "." + std::string(name);
    if (allowed(full) == nullptr) {
      complain(
          "wants to use ", name_text(full),
          ", which is not among the names that a checkpoint needs; nothing was run. If you trust the file, load it "
          "in Python and save only the dictionary of tensors");
    }
    push_text(Kind::kName, full);
  }

  void call(PickleValue* function, PickleValue* arguments) {
    expect(function, Kind::kName, "a called value");
    expect(arguments, Kind::kList, "arguments");
    const AllowedName& name = *allowed(function->text);
    const Values& given = arguments->items;
    switch (name.meaning) {
      case PickleName::kTensor:
        if (given.size() < 4) complain("damaged: a tensor lacks its storage, offset, size or stride");
        return push(tensor(*given[0], *given[1], *given[2], *given[3], expect_storage(given[0])->dtype));
      case PickleName::kTypedTensor:
        if (given.size() < 7 || !given[6]->is(Kind::kName) || allowed(given[6]->text)->meaning != PickleName::kDtype) {
          complain("damaged: a tensor lacks its dtype");
        }
        return push(tensor(*given[0], *given[1], *given[2], *given[3], std::string(allowed(given[6]->text)->dtype)));
      case PickleName::kParameter:
        if (given.empty()) complain("damaged: a parameter lacks its tensor");
        return push(expect(given[0], Kind::kTensor, "a parameter"));
      case PickleName::kDict:
        if (function->text != "collections.defaultdict" && !given.empty()) {
          complain("a dictionary made from a list of pairs, as Python 2 wrote it, is not read");
        }
        return push(make(Kind::kDict));
      case PickleName::kSize:
        if (given.size() != 1) complain("damaged: a size lacks its numbers");
        return push(expect(given[0], Kind::kList, "a size"));
      case PickleName::kObject: {
        PickleValue* object = make(Kind::kObject);
        object->text = function->text;
        object->items = {arguments};  // not a copy: many calls may share one long list
        return push(object);
      }
      case PickleName::kStorage:
      case PickleName::kDtype:
        complain("damaged: ", name_text(function->text), " cannot be called");
    }
  }

  const PickledStorage* expect_storage(const PickleValue* value) {
    if (!value->is(Kind::kStorage)) complain("damaged: a tensor's storage cannot be ", kind_name(*value));
    return value->storage.get();
  }

  std::vector<std::int64_t> sizes(const PickleValue& list, const char* what) {
    if (!list.is(Kind::kList)) complain("damaged: ", what, " cannot be ", kind_name(list));
    if (list.items.size() > kMaxDimensions) complain("a tensor of ", list.items.size(), " dimensions");
    std::vector<std::int64_t> numbers;
    for (const PickleValue* item : list.items) {
      numbers.push_back(integer(item, what));
      if (numbers.back() < 0) complain("damaged: ", what, " holds ", numbers.back());
    }
    return numbers;
  }

  PickleValue* tensor(const PickleValue& storage, const PickleValue& offset, const PickleValue& size,
                      const PickleValue& stride, const std::string& dtype) {
    PickledTensor tensor;
    tensor.storage = expect_storage(&storage)->bytes;
    tensor.dtype = dtype;
    tensor.offset = integer(&offset, "a tensor's offset");
    tensor.shape = sizes(size, "a tensor's size");
    tensor.stride = sizes(stride, "a tensor's stride");
    if (tensor.offset < 0 || tensor.shape.size() != tensor.stride.size()) complain("damaged: a tensor's size");
    const auto held = static_cast<std::int64_t>(tensor.storage.size()) / dtype_bytes(dtype);
    std::int64_t count = 1, last = tensor.offset;
    bool overflow = false, empty = false;
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
      if (tensor.shape[i] == 0) {
        empty = true;
        continue;
      }
      std::int64_t reach = 0;
      overflow |= __builtin_mul_overflow(count, tensor.shape[i], &count);
      overflow |= __builtin_mul_overflow(tensor.shape[i] - 1, tensor.stride[i], &reach);
      overflow |= __builtin_add_overflow(last, reach, &last);
    }
    // More elements than the storage has would be one element shown many times: a small file that fills the memory.
    if (overflow || (!empty && (last >= held || count > held))) {
      complain("a tensor reaches beyond its storage of ", held, " elements");
    }
    PickleValue* value = make(Kind::kTensor);
    value->tensor = std::make_unique<PickledTensor>(std::move(tensor));
    return value;
  }

  // ('storage', torch.FloatStorage, key, device, number of elements)
  void push_storage(const PickleValue* id) {
    const bool shaped = id->is(Kind::kList) && id->items.size() >= 5 && id->items[0]->is(Kind::kText) &&
                        id->items[0]->text == "storage" && id->items[1]->is(Kind::kName) &&
                        id->items[2]->is(Kind::kText) && id->items[4]->is(Kind::kInt);
    if (!shaped || allowed(id->items[1]->text)->meaning != PickleName::kStorage) {
      complain("damaged: a tensor's storage is not named as torch.save does");
    }
    PickledStorage storage;
    storage.dtype = allowed(id->items[1]->text)->dtype;
    const auto bytes = storages_(id->items[2]->text);
    const std::int64_t count = id->items[4]->integer, element = dtype_bytes(storage.dtype);
    if (count < 0 || count > static_cast<std::int64_t>(bytes.size()) / element) {
      complain("storage ", name_text(id->items[2]->text), " should have ", count, " elements of ", element,
               " bytes, but holds ", bytes.size(), " bytes; is the file cut short?");
    }
    storage.bytes = bytes.first(static_cast<std::size_t>(count * element));
    PickleValue* value = make(Kind::kStorage);
    value->storage = std::make_unique<PickledStorage>(std::move(storage));
    push(value);
  }

  // A long integer, little-endian two's complement. Those beyond 64 bits (states of random generators) mean nothing to
  // tensors and are kept as objects without content.
  void push_long(std::uint64_t count) {
    auto bytes = take(count);
    if (count > 8) {
      const std::byte sign = (bytes[7] & std::byte{0x80}) != std::byte{0} ? std::byte{0xff} : std::byte{0};
      if (!std::all_of(bytes.begin() + 8, bytes.end(), [&](std::byte byte) { return byte == sign; })) {
        PickleValue* wide = make(Kind::kObject);
        wide->text = "int of more than 64 bits";
        return push(wide);
      }
      bytes = bytes.first(8);
      count = 8;
    }
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < count; ++i) value |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
    if (count > 0 && count < 8 && (std::to_integer<unsigned>(bytes[count - 1]) & 0x80U) != 0) {
      value |= ~std::uint64_t{0} << (8 * count);
    }
    push_integer(Kind::kInt, static_cast<std::int64_t>(value));
  }

  void step(unsigned char opcode) {
    switch (opcode) {
      case 0x80: {  // PROTO
        const int version = number<std::uint8_t>();
        if (version > 5) complain("pickle protocol ", version, " is not known; the newest is 5");
        return;
      }
      case 0x95:  // FRAME
        number<std::uint64_t>();
        return;
      case '(':
        return marks_.push_back(stack_.size());
      case '0':  // POP; of a mark when nothing lies above it
        if (!marks_.empty() && stack_.size() == marks_.back()) return marks_.pop_back();
        pop();
        return;
      case '1':
        pop_to_mark();
        return;
      case '2':
        return push(top());
      case 'N':
        return push(make(Kind::kNone));
      case 0x88:
        return push_integer(Kind::kBool, 1);
      case 0x89:
        return push_integer(Kind::kBool, 0);
      case 'J':
        return push_integer(Kind::kInt, number<std::int32_t>());
      case 'K':
        return push_integer(Kind::kInt, number<std::uint8_t>());
      case 'M':
        return push_integer(Kind::kInt, number<std::uint16_t>());
      case 0x8a:
        return push_long(number<std::uint8_t>());
      case 0x8b:
        return push_long(number<std::uint32_t>());
      case 'G': {  // big-endian
        const std::uint64_t bits = __builtin_bswap64(number<std::uint64_t>());
        PickleValue* value = make(Kind::kFloat);
        std::memcpy(&value->number, &bits, sizeof(bits));
        return push(value);
      }
      case 'X':
        return push_text(Kind::kText, text(number<std::uint32_t>()));
      case 0x8c:
        return push_text(Kind::kText, text(number<std::uint8_t>()));
      case 0x8d:
        return push_text(Kind::kText, text(number<std::uint64_t>()));
      case 'T':  // strings of Python 2
      case 'B':
        return push_text(opcode == 'T' ? Kind::kText : Kind::kBytes, text(number<std::uint32_t>()));
      case 'U':
      case 'C':
        return push_text(opcode == 'U' ? Kind::kText : Kind::kBytes, text(number<std::uint8_t>()));
      case 0x8e:
      case 0x96:
        return push_text(Kind::kBytes, text(number<std::uint64_t>()));
      case ']':
      case ')':
      case 0x8f:
        return push(make(Kind::kList));
      case '}':
        return push(make(Kind::kDict));
      case 't':
      case 'l':
      case 0x91:
        return push_list(pop_to_mark());
      case 0x85:
        return push_list(pop_many(1));
      case 0x86:
        return push_list(pop_many(2));
      case 0x87:
        return push_list(pop_many(3));
      case 'd': {
        const Values values = pop_to_mark();
        PickleValue* dict = make(Kind::kDict);
        set(dict, values);
        return push(dict);
      }
      case 'a': {
        PickleValue* value = pop();
        return append(top(), {value});
      }
      case 'e':
      case 0x90: {
        const Values values = pop_to_mark();
        return append(top(), values);
      }
      case 's': {
        const Values pair = pop_many(2);
        return set(top(), pair);
      }
      case 'u': {
        const Values values = pop_to_mark();
        return set(top(), values);
      }
      case 'c': {
        const std::string_view module = line(), name = line();
        return push_name(module, name);
      }
      case 0x93: {
        const PickleValue* name = expect(pop(), Kind::kText, "a name");
        const PickleValue* module = expect(pop(), Kind::kText, "a name");
        return push_name(module->text, name->text);
      }
      case 'R':
      case 0x81: {  // REDUCE, NEWOBJ
        PickleValue* arguments = pop();
        return call(pop(), arguments);
      }
      case 'b': {  // BUILD: fields of what stands below
        PickleValue* state = pop();
        PickleValue* target = top();
        if (!target->is(Kind::kObject) && !target->is(Kind::kDict)) {
          complain("damaged: ", kind_name(*target), " cannot have fields");
        }
        target->state = state;
        return;
      }
      case 'q':
        return remember(number<std::uint8_t>());
      case 'r':
        return remember(number<std::uint32_t>());
      case 0x94:
        return remember(memo_.size());
      case 'h':
        return recall(number<std::uint8_t>());
      case 'j':
        return recall(number<std::uint32_t>());
      case 'Q': {
        const PickleValue* id = pop();
        return push_storage(id);
      }
      default:
        complain("opcode ", static_cast<int>(opcode), " at byte ", place_ - 1,
                 " has no use in a checkpoint of torch.save; is the file damaged?");
    }
  }

  std::span<const std::byte> bytes_;
  std::string prefix_;
  const Pickle::Storages& storages_;
  std::vector<std::unique_ptr<PickleValue>>& owned_;
  std::size_t place_ = 0;
  Values stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint64_t, PickleValue*> memo_;
};

}  // namespace

const PickleValue* PickleValue::find(std::string_view key) const {
  if (kind == Kind::kObject) return state != nullptr && state->is(Kind::kDict) ? state->find(key) : nullptr;
  if (kind != Kind::kDict) return nullptr;
  for (std::size_t i = items.size(); i >= 2; i -= 2) {
    if (items[i - 2]->is(Kind::kText) && items[i - 2]->text == key) return items[i - 1];
  }
  return nullptr;
}

std::string kind_name(const PickleValue& value) {
  switch (value.kind) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return "a boolean";
    case Kind::kInt:
    case Kind::kFloat:
      return "a number";
    case Kind::kText:
      return "text";
    case Kind::kBytes:
      return "bytes";
    case Kind::kList:
      return "a list";
    case Kind::kDict:
      return "a dictionary";
    case Kind::kTensor:
      return "a tensor";
    case Kind::kStorage:
      return "a storage";
    case Kind::kName:
      return "the name " + value.text;
    case Kind::kObject:
      return "an object of " + value.text;
  }
  return "?";
}

Pickle::Pickle(std::span<const std::byte> bytes, const std::string& label, const Storages& storages) {
  root_ = Machine(bytes, label, storages, values_).run();
}
Pickle::~Pickle() = default;
Pickle::Pickle(Pickle&&) noexcept = default;
Pickle& Pickle::operator=(Pickle&&) noexcept = default;

}  // namespace moh::io
