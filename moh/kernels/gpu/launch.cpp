#include "moh/kernels/gpu/launch.h"

#include <cstring>
#include <limits>
#include <map>
#include <mutex>

#include "moh/base/error.h"
#include "moh/kernels/gpu/driver.h"

namespace moh::kernels::gpu {
namespace {

// Loads the image at its first launch on a GPU. It stays until the process ends.
Function* function_of(const Kernel& kernel) {
  static std::mutex mutex;
  static std::map<std::pair<int, const KernelRow*>, Function*> loaded;
  const int device = current_device().index;
  const std::lock_guard lock(mutex);
  Function*& function = loaded[{device, kernel.row}];
  if (function != nullptr) return function;
  Module* module = nullptr;
  check(driver().cuModuleLoadData(&module, kernel.image()), kernel.row->variant);
  Function* found = nullptr;
  check(driver().cuModuleGetFunction(&found, module, kernel.row->function), kernel.row->variant);
  constexpr int kWithoutAsking = 48 * 1024;
  if (kernel.row->shared > kWithoutAsking) {
    int most = 0;
    driver().cuDeviceGetAttribute(&most, kMaxSharedPerBlock, device);
    MOH_CHECK(kernel.row->shared <= most, "[gpu] ", kernel.row->variant, " needs ", kernel.row->shared,
              " bytes of shared memory, this GPU has ", most, " for a block");
    check(driver().cuFuncSetAttribute(found, kMaxDynamicShared, kernel.row->shared), kernel.row->variant);
  }
  return function = found;
}

// One value as the kernel takes it, in 8 bytes.
std::uint64_t pack(const Kernel& kernel, const Parameter& parameter, const Arguments::Value& value) {
  const char type = parameter.type == 'i' ? 'l' : parameter.type;
  MOH_CHECK(type == value.type, "[gpu] ", kernel.row->variant, ": ", parameter.name, " has another type");
  std::uint64_t bits = 0;
  if (type == 'f') {
    std::memcpy(&bits, &value.is.real, sizeof value.is.real);
    return bits;
  }
  const std::int64_t number = type == 'p' ? reinterpret_cast<std::intptr_t>(value.is.address) : value.is.integer;
  MOH_CHECK(number % parameter.divisor == 0, "[gpu] ", kernel.row->variant, ": ", parameter.name,
            " must be a multiple of ", parameter.divisor, ", got ", number);
  if (parameter.type == 'i') {
    const auto narrow = static_cast<std::int32_t>(number);
    MOH_CHECK(narrow == number, "[gpu] ", kernel.row->variant, ": ", parameter.name, " is too large: ", number);
    std::memcpy(&bits, &narrow, sizeof narrow);
  } else {
    std::memcpy(&bits, &number, sizeof number);
  }
  return bits;
}

}  // namespace

void launch(const Kernel& kernel, const Grid& grid, const Arguments& arguments, void* stream) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr std::int64_t kMostX = std::numeric_limits<std::int32_t>::max(), kMostYZ = 65535;
  MOH_CHECK(grid.x <= kMostX && grid.y <= kMostYZ && grid.z <= kMostYZ, "[gpu] ", kernel.row->variant, ": a grid of ",
            grid.x, " x ", grid.y, " x ", grid.z, " blocks is too large; split the batch");
  const std::vector<Arguments::Value>& values = arguments.values();
  std::vector<std::uint64_t> words(kernel.parameters.size() + 2);  // Triton's kernels end with two unused pointers
  std::vector<void*> addresses(words.size());
  std::size_t next = 0;  // values mostly come in the kernel's order
  for (std::size_t i = 0; i < words.size(); ++i) {
    addresses[i] = &words[i];
    if (i >= kernel.parameters.size()) continue;
    const Parameter& parameter = kernel.parameters[i];
    std::size_t tried = 0;
    while (tried < values.size() && values[next].name != parameter.name) {
      next = (next + 1) % values.size();
      ++tried;
    }
    MOH_CHECK(tried < values.size(), "[gpu] ", kernel.row->variant, ": no value for ", parameter.name);
    words[i] = pack(kernel, parameter, values[next]);
  }
  constexpr unsigned kWarp = 32;
  check(driver().cuLaunchKernel(function_of(kernel), static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                                static_cast<unsigned>(grid.z), kernel.row->warps * kWarp, 1, 1, kernel.row->shared,
                                static_cast<Stream*>(stream), addresses.data(), nullptr),
        kernel.row->variant);
}

}  // namespace moh::kernels::gpu
