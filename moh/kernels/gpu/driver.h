// The driver of NVIDIA GPUs (libcuda.so.1), loaded when somebody first asks for it: a program needs neither it nor a
// GPU to be built and started. What is declared here is what moh calls of it, by the names and types of cuda.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace moh::kernels::gpu {

using Address = std::uint64_t;  // CUdeviceptr
struct Context;                 // CUcontext, CUmodule, CUfunction and CUstream are pointers to these
struct Module;
struct Function;
struct Stream;

constexpr int kCapabilityMajor = 75, kCapabilityMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
constexpr int kMaxSharedPerBlock = 97;                       // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
constexpr int kMaxDynamicShared = 8;                         // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

#define MOH_DRIVER_FUNCTIONS(call)                                                                                  \
  call(cuInit, (unsigned flags));                                                                                   \
  call(cuGetErrorString, (int status, const char** text));                                                          \
  call(cuDeviceGetCount, (int* count));                                                                             \
  call(cuDeviceGetAttribute, (int* value, int attribute, int device));                                              \
  call(cuDevicePrimaryCtxRetain, (Context * *context, int device));                                                 \
  call(cuCtxGetCurrent, (Context * *context));                                                                      \
  call(cuCtxSetCurrent, (Context * context));                                                                       \
  call(cuCtxGetDevice, (int* device));                                                                              \
  call(cuModuleLoadData, (Module * *module, const void* image));                                                    \
  call(cuModuleGetFunction, (Function * *function, Module * module, const char* name));                             \
  call(cuFuncSetAttribute, (Function * function, int attribute, int value));                                        \
  call(cuMemAllocAsync, (Address * address, std::size_t bytes, Stream * stream));                                   \
  call(cuMemFreeAsync, (Address address, Stream * stream));                                                         \
  call(cuLaunchKernel,                                                                                              \
       (Function * function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
        unsigned block_z, unsigned shared, Stream* stream, void** parameters, void** extra))

struct Driver {
#define MOH_DECLARE(name, parameters) int(*name) parameters = nullptr
  MOH_DRIVER_FUNCTIONS(MOH_DECLARE);
#undef MOH_DECLARE
};

// Why there is no driver or no GPU; empty: the functions of driver() can be called.
const std::string& driver_missing();
const Driver& driver();

// An Error with the driver's text unless the status is that of success.
void check(int status, const char* what);

// The current GPU of this thread, as torch and the CUDA runtime set it; the first one where nothing was set.
struct Device {
  int index = 0;
  int capability = 0;  // 90: compute capability 9.0
};
Device current_device();

// Memory of the current GPU that lives as long as this does on the stream. Nothing waits.
class Workspace {
 public:
  Workspace(std::size_t bytes, void* stream);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return reinterpret_cast<void*>(address_); }

 private:
  Address address_ = 0;
  Stream* stream_;
};

}  // namespace moh::kernels::gpu
