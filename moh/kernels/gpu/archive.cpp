#include "moh/kernels/gpu/archive.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <unordered_map>

#include "moh/base/error.h"

namespace moh::kernels::gpu {
namespace {

std::int64_t number(std::string_view text) {
  std::int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

// Calls visit for every word.
template <class F>
void each_word(std::string_view text, F&& visit) {
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    visit(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

std::vector<Parameter> parse_parameters(std::string_view text) {
  std::vector<Parameter> parameters;
  each_word(text, [&](std::string_view word) {
    const std::size_t colon = word.find(':');
    parameters.push_back({std::string(word.substr(0, colon)), word[colon + 1], number(word.substr(colon + 3))});
  });
  return parameters;
}

using Table = std::unordered_map<std::string, std::vector<Kernel>>;
const Table& table() {
  static const Table kernels = [] {
    Table result;
    for (const KernelRow* row = kRows; row != kRows + kNumRows; ++row) {
      result[row->variant].push_back({row, parse_parameters(row->parameters)});
    }
    return result;
  }();
  return kernels;
}

// Machine code runs on GPUs of its major number from its own on; from 9.0 on Triton uses what later ones lack, so on
// exactly its own. PTX serves everything newer.
bool runs_on(const KernelRow& row, int capability) {
  if (row.ptx) return capability > row.arch;
  return row.arch >= 90 ? capability == row.arch : capability / 10 == row.arch / 10 && capability >= row.arch;
}

}  // namespace

std::int64_t Kernel::constant(std::string_view name) const {
  std::int64_t value = -1;
  each_word(row->constants, [&](std::string_view word) {
    if (const std::size_t equal = word.find('='); word.substr(0, equal) == name) value = number(word.substr(equal + 1));
  });
  MOH_CHECK(value >= 0, "[gpu] the kernel ", row->variant, " has no constant ", name);
  return value;
}

const Kernel* find_kernel(const std::string& variant, int capability) {
  const auto found = table().find(variant);
  if (found == table().end()) return nullptr;
  const Kernel* best = nullptr;
  for (const Kernel& kernel : found->second) {
    if (runs_on(*kernel.row, capability) && (best == nullptr || best->row->ptx)) best = &kernel;
  }
  return best;
}

std::string missing_kernel(const std::string& variant, int capability) {
  if (find_kernel(variant, capability) != nullptr) return "";
  const std::string what = "the GPU kernel " + variant + " is not built";
  if (!table().contains(variant)) return what + " (docs/cuda.md lists those that are)";
  return what + " for compute capability " + std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

std::string built_architectures() {
  std::set<int> machine_code, text;
  for (const KernelRow* row = kRows; row != kRows + kNumRows; ++row) (row->ptx ? text : machine_code).insert(row->arch);
  std::string list;
  for (const int arch : machine_code) list += (list.empty() ? "sm_" : ", sm_") + std::to_string(arch);
  for (const int arch : text) list += " and PTX of sm_" + std::to_string(arch);
  return list;
}

bool serves(int capability) {
  for (const KernelRow* row = kRows; row != kRows + kNumRows; ++row) {
    if (runs_on(*row, capability)) return true;
  }
  return false;
}

}  // namespace moh::kernels::gpu
