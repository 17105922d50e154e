// A libcuda.so.1 for machines without one. It runs nothing: it looks whether every image, function and launch is what a
// driver would take, by what the machine code itself says of its arguments and threads, and tells a listener of each
// launch, who may compute what the kernel would. "Device memory" is that of the process.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace {

enum Status {
  kSuccess = 0,
  kInvalidValue = 1,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kWrongGpu = 209,
  kNotFound = 500
};

int capability() {
  static const int value = [] {
    const char* const text = std::getenv("MOH_STANDIN_CAPABILITY");
    return text != nullptr ? std::atoi(text) : 90;
  }();
  return value;
}
std::size_t most_shared() { return capability() < 90 ? (capability() == 80 ? 163 : 99) * 1024 : 227 * 1024; }

std::string last_error;
int refuse(int status, const std::string& why) {
  last_error = why;
  return status;
}

struct Image {
  const unsigned char* data;
  bool is_text;
};

struct KernelFunction {
  const unsigned char* image;
  std::string name;
  std::vector<unsigned> sizes;  // of the arguments, in bytes
  unsigned threads = 0;
  std::size_t shared = 48 * 1024;
};

template <class T>
T at(const unsigned char* data, std::size_t offset) {
  T value;
  std::memcpy(&value, data + offset, sizeof value);
  return value;
}

// Sections of an ELF file of 64 bits by name.
std::map<std::string, std::string_view> sections(const unsigned char* data) {
  std::map<std::string, std::string_view> result;
  const auto table = at<std::uint64_t>(data, 0x28);
  const auto count = at<std::uint16_t>(data, 0x3c), names = at<std::uint16_t>(data, 0x3e);
  const auto text = at<std::uint64_t>(data, table + 64 * names + 24);
  for (unsigned i = 0; i < count; ++i) {
    const std::uint64_t header = table + 64 * i;
    const char* const name = reinterpret_cast<const char*>(data) + text + at<std::uint32_t>(data, header);
    result[name] = {reinterpret_cast<const char*>(data) + at<std::uint64_t>(data, header + 24),
                    at<std::uint64_t>(data, header + 32)};
  }
  return result;
}

// The kernel's own notes (.nv.info): attribute 0x17 describes an argument, 0x10 the threads of a block.
bool read_notes(std::string_view notes, KernelFunction& function) {
  const auto* const data = reinterpret_cast<const unsigned char*>(notes.data());
  constexpr unsigned kSized = 4, kArgument = 0x17, kThreads = 0x10;
  std::map<unsigned, unsigned> sizes;
  for (std::size_t i = 0; i + 4 <= notes.size();) {
    const unsigned format = data[i], attribute = data[i + 1], value = at<std::uint16_t>(data, i + 2);
    i += 4;
    if (format != kSized) continue;
    if (attribute == kArgument) sizes[at<std::uint16_t>(data, i + 4)] = at<std::uint32_t>(data, i + 8) >> 18;
    if (attribute == kThreads) function.threads = at<std::uint32_t>(data, i);
    i += value;
  }
  for (const auto& [place, size] : sizes) {
    if (place != function.sizes.size()) return false;
    function.sizes.push_back(size);
  }
  return function.threads != 0 && !function.sizes.empty();
}

// The same from PTX.
bool read_text(std::string_view text, KernelFunction& function) {
  const std::size_t entry = text.find(".entry " + function.name + "(");
  if (entry == std::string_view::npos) return false;
  std::string_view head = text.substr(entry, text.find('{', entry) - entry);
  for (std::size_t place = head.find(".param "); place != std::string_view::npos;
       place = head.find(".param ", place + 1)) {
    const std::string_view type = head.substr(place + 7, 4);
    function.sizes.push_back(type == ".u64" || type == ".b64" ? 8 : 4);
  }
  const std::size_t threads = head.find(".reqntid ");
  if (threads != std::string_view::npos) function.threads = std::atoi(head.data() + threads + 9);
  return function.threads != 0;
}

using Listener = void (*)(const void* image, const char* function, const unsigned* grid, unsigned threads,
                          unsigned shared, const std::uint64_t* arguments, unsigned count, void* stream);
Listener listener = nullptr;
long live_blocks = 0;
int context = 0;
void* current = nullptr;

}  // namespace

extern "C" {

void standin_listen(Listener function) { listener = function; }
long standin_live_blocks() { return live_blocks; }

int cuInit(unsigned) { return kSuccess; }
int cuGetErrorString(int, const char** text) {
  *text = last_error.c_str();
  return kSuccess;
}
int cuDeviceGetCount(int* count) {
  *count = capability() > 0 ? 1 : 0;
  return kSuccess;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75   ? capability() / 10
           : attribute == 76 ? capability() % 10
           : attribute == 97 ? static_cast<int>(most_shared())
                             : 0;
  return kSuccess;
}
int cuDevicePrimaryCtxRetain(void** result, int) {
  *result = &context;
  return kSuccess;
}
int cuCtxGetCurrent(void** result) {
  *result = current;
  return kSuccess;
}
int cuCtxSetCurrent(void* value) {
  current = value;
  return kSuccess;
}
int cuCtxGetDevice(int* device) {
  *device = 0;
  return current == nullptr ? refuse(kInvalidContext, "no context") : kSuccess;
}

int cuModuleLoadData(void** module, const void* image) {
  if (current == nullptr) return refuse(kInvalidContext, "no context");
  const auto* const data = static_cast<const unsigned char*>(image);
  const bool is_text = std::memcmp(data,
                                   "\x7f"
                                   "ELF",
                                   4) != 0;
  if (is_text) {
    const std::string_view text(static_cast<const char*>(image));
    const std::size_t target = text.find(".target sm_");
    if (text.substr(0, 8) != ".version" || target == std::string_view::npos)
      return refuse(kInvalidImage, "neither ELF nor PTX");
    const std::string_view line = text.substr(target + 11, text.find('\n', target) - target - 11);
    if (line.find('a') != std::string_view::npos || std::atoi(line.data()) > capability()) {
      return refuse(kWrongGpu, "PTX of another GPU");
    }
  } else {
    const auto flags = at<std::uint32_t>(data, 0x30);
    const int arch = static_cast<int>(data[8] >= 8 ? flags >> 8 & 0xff : flags & 0xff);  // by the version of the format
    const bool same = arch >= 90 ? arch == capability() : arch / 10 == capability() / 10 && arch <= capability();
    if (!same)
      return refuse(kWrongGpu, "machine code of sm_" + std::to_string(arch) + " on " + std::to_string(capability()));
  }
  *module = new Image{data, is_text};
  return kSuccess;
}

int cuModuleGetFunction(void** result, void* module, const char* name) {
  const Image& image = *static_cast<Image*>(module);
  auto function = KernelFunction{image.data, name, {}};
  bool found = false;
  if (image.is_text) {
    found = read_text(reinterpret_cast<const char*>(image.data), function);
  } else {
    const auto parts = sections(image.data);
    const auto notes = parts.find(std::string(".nv.info.") + name);
    found = parts.contains(std::string(".text.") + name) && notes != parts.end() && read_notes(notes->second, function);
  }
  if (!found) return refuse(kNotFound, std::string("no function ") + name);
  *result = new KernelFunction(std::move(function));
  return kSuccess;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute != 8 || value < 0 || static_cast<std::size_t>(value) > most_shared()) {
    return refuse(kInvalidValue, "attribute " + std::to_string(attribute) + " = " + std::to_string(value));
  }
  static_cast<KernelFunction*>(function)->shared = value;
  return kSuccess;
}

int cuMemAllocAsync(std::uint64_t* address, std::size_t bytes, void*) {
  if (bytes == 0) return refuse(kInvalidValue, "no bytes");
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes) != 0) return refuse(2, "out of memory");
  std::memset(memory, 0xff, bytes);  // NaN, and rows that do not exist
  ++live_blocks;
  *address = reinterpret_cast<std::uint64_t>(memory);
  return kSuccess;
}
int cuMemFreeAsync(std::uint64_t address, void*) {
  std::free(reinterpret_cast<void*>(address));
  --live_blocks;
  return kSuccess;
}

int cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned x, unsigned y, unsigned z,
                   unsigned shared, void* stream, void** parameters, void** extra) {
  const auto& function = *static_cast<KernelFunction*>(handle);
  if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_y > 65535 || grid_z > 65535)
    return refuse(kInvalidValue, "grid");
  if (x != function.threads || y != 1 || z != 1) return refuse(kInvalidValue, "threads of a block");
  if (shared > function.shared) return refuse(kInvalidValue, "shared memory");
  if (parameters == nullptr || extra != nullptr) return refuse(kInvalidValue, "arguments");
  std::vector<std::uint64_t> arguments;
  for (std::size_t i = 0; i < function.sizes.size(); ++i) {
    std::uint64_t value = 0;
    std::memcpy(&value, parameters[i], function.sizes[i]);
    arguments.push_back(value);
  }
  const unsigned grid[] = {grid_x, grid_y, grid_z};
  if (listener != nullptr) {
    listener(function.image, function.name.c_str(), grid, x, shared, arguments.data(),
             static_cast<unsigned>(arguments.size()), stream);
  }
  return kSuccess;
}
}
