// Launches of compiled kernels. A caller names every value a kernel may want; the kernel's row of the archive says
// which of them it takes, in which order and of which size.
#pragma once

#include <concepts>
#include <cstdint>
#include <string_view>
#include <vector>

#include "moh/kernels/gpu/archive.h"
#include "moh/kernels/strided.h"

namespace moh::kernels::gpu {

class Arguments {
 public:
  void set(std::string_view name, const void* address) { values_.push_back({name, 'p', {.address = address}}); }
  void set(std::string_view name, std::integral auto value) { values_.push_back({name, 'l', {.integer = value}}); }
  void set(std::string_view name, float value) { values_.push_back({name, 'f', {.real = value}}); }
  // Strides as the kernels call them: "q_b", "q_t", "q_h" of the letter q and the axes "bth". Those of elements within
  // a head are not passed.
  template <class Pointer, int dimensions>
  void set_strides(const char* const (&names)[dimensions], const Strided<Pointer, dimensions>& tensor) {
    for (int i = 0; i < dimensions; ++i) {
      if (names[i] != nullptr) set(names[i], tensor.stride[i]);
    }
  }

  struct Value {
    std::string_view name;
    char type;
    union {
      const void* address;
      std::int64_t integer;
      float real;
    } is;
  };
  const std::vector<Value>& values() const { return values_; }

 private:
  std::vector<Value> values_;
};

struct Grid {
  std::int64_t x = 1, y = 1, z = 1;
};

// Into the stream's queue. An Error names what does not fit the kernel: a value that is missing, too large or not the
// multiple it has to be.
void launch(const Kernel& kernel, const Grid& grid, const Arguments& arguments, void* stream);

}  // namespace moh::kernels::gpu
