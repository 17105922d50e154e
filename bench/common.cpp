#include "bench/common.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "bench/machine.h"
#include "moh/kernels/backend.h"
#include "moh/ops/autocast.h"
#include "moh/ops/kernel_tensor.h"

namespace moh::bench {

using at::Tensor;

at::ScalarType type_of(const std::string& dtype) { return ops::autocast_type(dtype).value_or(at::kFloat); }

Tensor random_gates(const Case& c, std::int64_t tokens, const at::Generator& generator) {
  const auto uniform = [&](std::int64_t choices) {
    return at::empty({c.batch, tokens, choices}, at::TensorOptions(at::kFloat)).uniform_(0, 1, generator);
  };
  const bool groups = c.select == "kv-group";
  const std::int64_t choices = groups ? c.kv_heads : c.heads;
  const auto active = std::max<std::int64_t>(1, std::llround(c.activated * static_cast<double>(choices)));
  const Tensor scores = uniform(choices);
  Tensor chosen = at::zeros_like(scores).scatter(-1, std::get<1>(scores.topk(active, -1)), 1.0);
  if (groups) chosen = chosen.repeat_interleave(c.heads / c.kv_heads, -1);
  return chosen * (uniform(c.heads) + 0.5);
}

double active_share(const Tensor& gates) { return gates.ne(0).to(at::kDouble).mean().item<double>(); }

AttentionWork attention_work(const Tensor& gates, std::int64_t keys, std::int64_t kv_heads, std::int64_t head_dim,
                             bool causal, double bytes_per_element) {
  const Tensor active = gates.ne(0).to(at::kDouble);  // [B, T, H]
  const std::int64_t queries = gates.size(1);
  Tensor visible = at::full({queries}, static_cast<double>(keys), active.options());
  if (causal) visible = (at::arange(queries, active.options()) + static_cast<double>(keys - queries + 1)).clamp_min(0);
  AttentionWork work;
  work.visible_pairs = (active * visible.unsqueeze(-1)).sum().item<double>();
  work.active_rows = active.sum().item<double>();
  // [B, Hkv]: does any query of any head of the group need this KV head?
  const Tensor needed = active.amax(1).unflatten(-1, {kv_heads, gates.size(2) / kv_heads}).amax(-1);
  work.kv_rows = needed.sum().item<double>() * static_cast<double>(keys);
  work.head_dim = static_cast<double>(head_dim);
  work.bytes_per_element = bytes_per_element;
  return work;
}

std::string attention_backend(const Case& c, at::Device device) {
  const auto* backend = kernels::choose_backend({.dtype = ops::kernel_dtype(type_of(c.dtype)),
                                                 .on_cpu = device.is_cpu(),
                                                 .head_dim = c.head_dim,
                                                 .backward = c.has_backward()},
                                                nullptr);
  return backend != nullptr ? backend->name : "composite";
}

Row make_row(const char* subject, const Case& c, const Options& options, const Measured& measured) {
  const Limits& limits = machine_limits(c.dtype, options.seconds, options.device);
  const Timing& timing = measured.timing;
  const Work work = total(measured.work), rival_work = total(measured.rival_work);
  Row row;
  row["subject"] = subject;
  row["direction"] = c.direction;
  row["dtype"] = c.dtype;
  row["batch"] = c.batch;
  row["heads"] = c.heads;
  row["kv_heads"] = c.kv_heads;
  row["head_dim"] = c.head_dim;
  row["tokens"] = c.tokens;
  row["causal"] = c.is_causal();
  row["activated"] = measured.activated;
  row["threads"] = at::get_num_threads();
  row["device"] = options.device.str();
  row["backend"] = attention_backend(c, options.device);
  row["moh_ms"] = timing.moh_ms;
  row["rival"] = c.rival;
  row["rival_ms"] = timing.rival_ms;
  row["ratio"] = timing.ratio;
  row["ratio_low"] = timing.ratio_low;
  row["ratio_high"] = timing.ratio_high;
  row["pairs"] = timing.pairs;
  row["efficiency"] = 1.0 / (timing.ratio * measured.activated);
  row["max_abs_error"] = measured.max_abs_error;
  if (!measured.rival_form.empty()) row["rival_form"] = measured.rival_form;
  row["gflops"] = work.flops / (timing.moh_ms * 1e6);
  row["gemm_share"] = work.flops / (timing.moh_ms * 1e6) / limits.gemm_gflops;
  row["bandwidth_share"] = work.bytes / (timing.moh_ms * 1e6) / limits.read_gbs;
  row["rival_gemm_share"] = rival_work.flops / (timing.rival_ms * 1e6) / limits.gemm_gflops;
  row["rival_bandwidth_share"] = rival_work.bytes / (timing.rival_ms * 1e6) / limits.read_gbs;
  row["ideal_ratio"] = least_ms(measured.work, limits) / least_ms(measured.rival_work, limits);
  row["limit_share"] = least_ms(measured.work, limits) / timing.moh_ms;
  row["gemm_peak_gflops"] = limits.gemm_gflops;
  row["fma_peak_gflops"] = limits.fma_gflops;
  row["read_gbs"] = limits.read_gbs;
  row["copy_gbs"] = limits.copy_gbs;
  row["requested"] = c.activated;  // share asked for; `activated` is what came out
  row["select"] = c.select;
  return row;
}

}  // namespace moh::bench
