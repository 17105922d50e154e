#include "moh/kernels/gpu/backend.h"

#include <algorithm>

#include "moh/base/error.h"
#include "moh/kernels/gpu/call.h"

namespace moh::kernels::gpu {

std::string unavailable_reason() {
  if (*kNotBuilt != '\0') return std::string("this build has no GPU kernels: ") + kNotBuilt;
  if (!driver_missing().empty()) return driver_missing() + "; kernels are built for " + built_architectures();
  const int capability = current_device().capability;
  if (serves(capability)) return "";
  return "kernels are built for " + built_architectures() + ", the GPU has compute capability " +
         std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

std::string unsupported_reason(const CallTraits& call) {
  if (call.on_cpu) return "the tensors are in CPU memory";
  if (std::string why = unavailable_reason(); !why.empty()) return why;
  if (std::string why = head_reason(call.dtype, call.head_dim); !why.empty()) return why;
  const int capability = current_device().capability;
  if (call.attention != nullptr) return attention_unsupported(*call.attention, call.backward, capability);
  if (call.projection != nullptr) return projection_unsupported(*call.projection, capability);
  return "";
}

std::string variant_name(const char* kernel, DType dtype, std::int64_t head_dim) {
  return std::string(kernel) + "-" + name_of(dtype) + (head_dim <= 64 ? "-d64" : "-d128");
}

const Kernel& kernel_for(const std::string& variant) {
  const int capability = current_device().capability;
  const Kernel* const kernel = find_kernel(variant, capability);
  MOH_CHECK(kernel != nullptr, "[gpu] ", missing_kernel(variant, capability));
  return *kernel;
}

std::string head_reason(DType dtype, std::int64_t head_dim) {
  if (dtype == DType::kFloat64) return "fp64 runs the composite form; the kernels compute in fp32";
  const std::int64_t unit = 16 / size_of(dtype);
  if (head_dim > 128) return "head size " + std::to_string(head_dim) + " is above 128, the largest that is built";
  if (head_dim % unit != 0) {
    return std::string("heads of ") + name_of(dtype) + " must be a multiple of " + std::to_string(unit) + ", got " +
           std::to_string(head_dim);
  }
  return "";
}

namespace {
// Parts of one piece of work space begin at multiples of 256 bytes.
constexpr std::int64_t aligned(std::int64_t bytes) { return blocks(bytes, 256) * 256; }
void* after(void* address, std::int64_t bytes) { return static_cast<char*>(address) + bytes; }
}  // namespace

RowLists::RowLists(const float* gates, std::int64_t total_rows, std::int64_t num_heads, std::int64_t num_sequences,
                   std::int64_t rows_per_batch, std::int64_t longest, const std::int64_t* table, void* stream)
    : steps(std::max<std::int64_t>(1, blocks(longest, kernel_for("list_rows").constant("STEP")))),
      memory(aligned(4 * num_heads * total_rows) + aligned(4 * num_sequences * num_heads) +
                 4 * num_sequences * num_heads * steps,
             stream),
      rows(memory.data()),
      counts(after(rows, aligned(4 * num_heads * total_rows))),
      before(after(counts, aligned(4 * num_sequences * num_heads))) {
  Arguments arguments;
  arguments.set("gates", gates);
  add_to(arguments);
  arguments.set("sequences", table);
  arguments.set("queries", rows_per_batch);
  arguments.set("total_rows", total_rows);
  arguments.set("rows_per_batch", rows_per_batch);
  arguments.set("num_heads", num_heads);
  launch(kernel_for(table == nullptr ? "list_rows" : "list_rows-pages"), {num_sequences, num_heads}, arguments, stream);
}

void RowLists::add_to(Arguments& arguments) const {
  arguments.set("rows", rows);
  arguments.set("counts", counts);
  arguments.set("before", before);
  arguments.set("steps", steps);
}

}  // namespace moh::kernels::gpu
