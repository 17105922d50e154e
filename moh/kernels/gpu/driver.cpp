#include "moh/kernels/gpu/driver.h"

#include <dlfcn.h>

#include <vector>

#include "moh/base/error.h"

namespace moh::kernels::gpu {
namespace {

// What is known of the machine, found out once.
struct Machine {
  Driver driver;
  std::string missing;
  std::vector<int> capabilities;  // of every device

  Machine() { missing = load(); }

 private:
  std::string load() {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return "no CUDA device: the driver libcuda.so.1 is not installed";
#define MOH_LOAD(name, parameters)                                              \
  driver.name = reinterpret_cast<decltype(driver.name)>(dlsym(library, #name)); \
  if (driver.name == nullptr) return "the driver libcuda.so.1 is too old: it has no " #name
    MOH_DRIVER_FUNCTIONS(MOH_LOAD);
#undef MOH_LOAD
    int count = 0;
    if (driver.cuInit(0) != 0 || driver.cuDeviceGetCount(&count) != 0 || count == 0) {
      return "no CUDA device: the driver finds none";
    }
    for (int device = 0; device < count; ++device) {
      int major = 0, minor = 0;
      driver.cuDeviceGetAttribute(&major, kCapabilityMajor, device);
      driver.cuDeviceGetAttribute(&minor, kCapabilityMinor, device);
      capabilities.push_back(10 * major + minor);
    }
    return "";
  }
};

const Machine& machine() {
  static const Machine found;
  return found;
}

}  // namespace

const std::string& driver_missing() { return machine().missing; }
const Driver& driver() { return machine().driver; }

void check(int status, const char* what) {
  if (status == 0) return;
  const char* text = nullptr;
  driver().cuGetErrorString(status, &text);
  fail("[gpu] ", what, ": ", text != nullptr ? text : "error " + std::to_string(status));
}

Device current_device() {
  Context* context = nullptr;
  check(driver().cuCtxGetCurrent(&context), "asking for the current GPU");
  Device device;
  if (context == nullptr) {
    check(driver().cuDevicePrimaryCtxRetain(&context, 0), "taking the first GPU");
    check(driver().cuCtxSetCurrent(context), "taking the first GPU");
  }
  check(driver().cuCtxGetDevice(&device.index), "asking for the current GPU");
  device.capability = machine().capabilities.at(device.index);
  return device;
}

Workspace::Workspace(std::size_t bytes, void* stream) : stream_(static_cast<Stream*>(stream)) {
  check(driver().cuMemAllocAsync(&address_, bytes == 0 ? 1 : bytes, stream_), "taking memory for a kernel");
}
Workspace::~Workspace() { driver().cuMemFreeAsync(address_, stream_); }

}  // namespace moh::kernels::gpu
