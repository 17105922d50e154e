// The table of backends and the choice between them.
#include "moh/kernels/backend.h"

#include <cstdlib>
#include <mutex>
#if defined(MOH_HAVE_AMX) && defined(__linux__)
  #include <sys/syscall.h>
  #include <unistd.h>
#endif

#include "moh/base/error.h"
#include "moh/kernels/cpu/backend.h"
#include "moh/kernels/gpu/backend.h"
#include "moh/kernels/reference/aggregated_attention.h"
#include "moh/kernels/reference/gated_convolution.h"
#include "moh/kernels/reference/head_attention.h"
#include "moh/kernels/reference/linear.h"
#include "moh/kernels/reference/projection.h"

namespace moh::kernels {

namespace {

std::string always() { return ""; }

#ifdef MOH_HAVE_AVX512
std::string avx512_missing() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
             ? ""
             : "this CPU has no AVX-512 (F, BW, VL, DQ)";
}
#endif
#ifdef MOH_HAVE_AVX2
std::string avx2_missing() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
             ? ""
             : "this CPU has no AVX2 with FMA and F16C";
}
#endif

#ifdef MOH_HAVE_AVX512BF16
std::string avx512bf16_missing() {
  std::string why = avx512_missing();
  if (why.empty() && !(__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")))
    why = "this CPU has no AVX512-BF16 and VNNI";
  return why;
}
#endif
#ifdef MOH_HAVE_AMX
// The system saves tiles only for processes that asked for it, once, before they use any.
std::string no_permission_for_tiles() {
  #ifdef __linux__
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted ? "" : "the system does not let this process use AMX tiles";
  #else
  return "how to ask this system for AMX tiles is not known";
  #endif
}
std::string amx_missing() {
  std::string why = avx512bf16_missing();
  if (why.empty() && !(__builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16")))
    why = "this CPU has no AMX (tiles, BF16)";
  return why.empty() ? no_permission_for_tiles() : why;
}
#endif

std::string cpu_unsupported(const CallTraits& call) {
  if (!call.on_cpu) return "the tensors are not in CPU memory";
  if (call.dtype == DType::kFloat64) return "fp64 runs the composite form; the fused kernels compute in fp32";
  return "";
}

std::string bf16_unsupported(const CallTraits& call) {
  if (!call.on_cpu) return "the tensors are not in CPU memory";
  if (call.kernel == Kernel::kQuantizedLinear) return cpu_unsupported(call);
  if (call.dtype != DType::kBFloat16) return std::string("it multiplies bf16 alone, got ") + name_of(call.dtype);
  return "";
}

std::string reference_unsupported(const CallTraits& call) {
  if (!call.on_cpu) return "the tensors are not in CPU memory";
  return call.dtype == DType::kFloat64 ? "gates and statistics of fp64 tensors would be rounded to fp32" : "";
}

bool has_kernel(const Backend& backend, Kernel kernel) {
  switch (kernel) {
    case Kernel::kAttention:
      return backend.attention_forward != nullptr;
    case Kernel::kProjection:
      return backend.project_heads != nullptr;
    case Kernel::kAggregated:
      return backend.aggregated_forward != nullptr;
    case Kernel::kGatedConvolution:
      return backend.gated_convolution_forward != nullptr;
    case Kernel::kPackedLinear:
      return backend.packed_linear != nullptr;
    case Kernel::kQuantizedLinear:
      return backend.quantized_linear != nullptr;
  }
  return false;
}

// Empty: this row can run the call, on this machine.
std::string reason_against(const Backend& backend, const CallTraits& call) {
  std::string why = backend.unavailable_reason();
  if (why.empty() && !has_kernel(backend, call.kernel))
    why = std::string("it has no kernel for ") + name_of(call.kernel);
  if (why.empty()) why = backend.unsupported_reason(call);
  return why;
}

std::string& forced_name() {
  static std::string name;
  return name;
}
std::mutex forced_mutex;

void check_name(const std::string& name, const char* where) {
  if (name.empty() || name == "auto" || name == "composite") return;
  std::string known = "auto, composite";
  for (const Backend& backend : backends()) {
    if (name == backend.name) return;
    known += std::string(", ") + backend.name;
  }
  fail("[backend] ", where, " names an unknown backend `", name, "`; known: ", known);
}

// The backend that was asked for by name; "" if none was.
std::string wanted_name(const std::string& name) {
  if (!name.empty()) return name;
  if (std::string forced = forced_backend(); !forced.empty()) return forced;
  const char* environment = std::getenv("MOH_BACKEND");
  if (environment == nullptr) return "";
  check_name(environment, "MOH_BACKEND");
  return environment;
}

}  // namespace

#define MOH_KERNELS_OF(isa)                                                                          \
  isa::head_attention_forward, isa::head_attention_backward, isa::project_heads, isa::combine_heads, \
      isa::weight_gradient, isa::aggregated_attention_forward, isa::aggregated_attention_backward,   \
      isa::gated_convolution_forward, isa::gated_convolution_backward, isa::packed_linear, isa::quantized_linear

#define MOH_PAIR_KERNELS_OF(isa)                                                                     \
  isa::head_attention_forward, isa::head_attention_backward, isa::project_heads, isa::combine_heads, \
      isa::weight_gradient, nullptr, nullptr, nullptr, nullptr, nullptr, isa::quantized_linear

const std::vector<Backend>& backends() {
  static const std::vector<Backend> table = {
#ifdef MOH_HAVE_AMX
      {"amx", nullptr, bf16_unsupported, amx_missing, MOH_PAIR_KERNELS_OF(amx)},
#endif
#ifdef MOH_HAVE_AVX512BF16
      {"avx512bf16", nullptr, bf16_unsupported, avx512bf16_missing, MOH_PAIR_KERNELS_OF(avx512bf16)},
#endif
#ifdef MOH_HAVE_AVX512
      {"avx512", nullptr, cpu_unsupported, avx512_missing, MOH_KERNELS_OF(avx512)},
#endif
#ifdef MOH_HAVE_AVX2
      {"avx2", nullptr, cpu_unsupported, avx2_missing, MOH_KERNELS_OF(avx2)},
#endif
      {"portable", nullptr, cpu_unsupported, always, MOH_KERNELS_OF(portable)},
      {"triton", "compiled, not yet run on a GPU", gpu::unsupported_reason, gpu::unavailable_reason,
       gpu::head_attention_forward, gpu::head_attention_backward, gpu::project_heads, gpu::combine_heads,
       gpu::weight_gradient, nullptr, nullptr, nullptr, nullptr},
      {"emulated_amx", "AMX and AVX512-BF16 in software, for tests", bf16_unsupported, always,
       MOH_PAIR_KERNELS_OF(emulated_amx)},
      {"reference", "scalar float64, slow", reference_unsupported, always, MOH_KERNELS_OF(reference)},
  };
  return table;
}

#undef MOH_KERNELS_OF
#undef MOH_PAIR_KERNELS_OF

void force_backend(const std::string& name) {
  check_name(name, "--backend");
  const std::lock_guard lock(forced_mutex);
  forced_name() = name;
}

std::string forced_backend() {
  const std::lock_guard lock(forced_mutex);
  return forced_name();
}

const Backend* choose_backend(const CallTraits& call, std::string* reason, const std::string& name) {
  const std::string wanted = wanted_name(name);
  const bool automatic = wanted.empty() || wanted == "auto";
  std::string told = wanted == "composite" ? "the composite form was asked for" : "";
  if (wanted != "composite") {
    for (const Backend& backend : backends()) {
      if (automatic ? !backend.automatic() : wanted != backend.name) continue;
      const std::string why = reason_against(backend, call);
      if (why.empty()) return &backend;
      MOH_CHECK(automatic, "[backend] `", wanted, "` cannot run: ", why);
      told = why;  // of the most general row, which comes last
    }
    for (const Backend& backend : backends()) {  // a row that could, had it been asked for, is the better answer
      if (backend.automatic() || !reason_against(backend, call).empty()) continue;
      told =
          std::string("backend `") + backend.name + "` runs only when asked for by name (" + backend.by_name_only + ")";
      break;
    }
  }
  if (reason != nullptr) *reason = told;
  return nullptr;
}

}  // namespace moh::kernels
