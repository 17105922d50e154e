// moh bench decode: one or a few new tokens of each sequence against its KV cache, each sequence with heads of its own.
// The layers of a model follow one another, so their caches are not in the CPU's caches when they are read: a run goes
// over as many caches as it takes to exceed these several times. Rivals: torch_sdpa, all heads, in its fastest layout;
// torch_matmul, all heads, scores and values as batched matrix products, which beats torch_sdpa on some machines.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <limits>
#include <set>

#include "bench/common.h"
#include "bench/machine.h"
#include "bench/reference.h"
#include "bench/sdpa.h"
#include "moh/base/error.h"
#include "moh/ops/head_attention.h"

namespace moh::bench {
namespace {

using at::Tensor;

struct Layer {
  Tensor query, gates;            // [B, T, H, D], [B, T, H]
  Tensor key, value;              // moh: [B, S, Hkv, D], of either layout
  Tensor dense_key, dense_value;  // rivals: [B, Hkv, S, D], contiguous
  Tensor dense_query;             // [B, H, T, D], contiguous
};

std::int64_t number_of_layers(const Case& c) {
  constexpr double kMost = 64, kCaches = 4;
  const double cache = machine_description().get<double>("last_cache_mib") * (1 << 20);
  const double bytes = 2.0 * static_cast<double>(c.batch * c.tokens * c.kv_heads * c.head_dim) *
                       static_cast<double>(at::elementSize(type_of(c.dtype)));
  return static_cast<std::int64_t>(std::clamp(std::ceil(kCaches * cache / bytes), 1.0, kMost));
}

std::vector<Layer> make_layers(const Case& c, const Options& options) {
  const at::Generator generator = at::detail::createCPUGenerator(options.seed);
  const auto random = [&](std::int64_t tokens, std::int64_t heads, std::int64_t batch) {
    return at::empty({batch, tokens, heads, c.head_dim}, at::TensorOptions(at::kFloat))
        .normal_(0, 1, generator)
        .to(type_of(c.dtype))
        .to(options.device);
  };
  // Gigabytes of random numbers would take longer than the measurement: every sequence has the same ones, shifted.
  const Tensor keys = random(c.tokens, c.kv_heads, 1).select(0, 0).transpose(0, 1);
  const Tensor values = random(c.tokens, c.kv_heads, 1).select(0, 0).transpose(0, 1);
  std::vector<Layer> layers(static_cast<std::size_t>(number_of_layers(c)));
  std::int64_t shift = 0;
  for (Layer& layer : layers) {
    layer.query = random(c.queries, c.heads, c.batch);
    layer.gates = random_gates(c, c.queries, generator).to(options.device);
    layer.dense_query = layer.query.transpose(1, 2).contiguous();
    layer.dense_key = at::empty({c.batch, c.kv_heads, c.tokens, c.head_dim}, keys.options());
    layer.dense_value = at::empty_like(layer.dense_key);
    for (std::int64_t b = 0; b < c.batch; ++b, ++shift) {
      layer.dense_key.select(0, b).copy_(keys.roll(shift, 1));
      layer.dense_value.select(0, b).copy_(values.roll(shift, 1));
    }
    const auto cache = [&](const Tensor& dense) {
      return c.layout == "head" ? dense.transpose(1, 2) : dense.transpose(1, 2).contiguous();
    };
    layer.key = cache(layer.dense_key);
    layer.value = cache(layer.dense_value);
  }
  return layers;
}

// New tokens see the cache and one another causally; with one of them nothing is hidden.
Tensor moh_step(const Case& c, const Layer& layer) {
  return ops::head_attention(layer.query, layer.key, layer.value, layer.gates, std::nullopt, /*causal=*/c.queries > 1);
}

// [T, S] of 0 and -inf; torch's own causal mask puts the first query at the first key.
Tensor causal_mask(const Case& c, at::Device device) {
  if (c.queries == 1) return {};
  const auto dtype = type_of(c.dtype);
  return at::zeros({c.queries, c.tokens}, at::TensorOptions(dtype).device(device))
      .masked_fill(
          at::ones({c.queries, c.tokens}, at::TensorOptions(at::kBool).device(device)).triu(c.tokens - c.queries + 1),
          -std::numeric_limits<double>::infinity());
}

struct RivalForm {
  std::string name;
  std::function<Tensor(const Layer&)> step;  // [B, H, T, D]
};

std::vector<RivalForm> make_rivals(const Case& c, const Tensor& mask) {
  const std::int64_t group = c.heads / c.kv_heads;
  const auto as_group = [&c, group](const Tensor& tensor) {  // the query heads of a KV head are queries of one head
    return tensor.view({c.batch, c.kv_heads, group * c.queries, c.head_dim});
  };
  const auto from_group = [&c](const Tensor& out) { return out.reshape({c.batch, c.heads, c.queries, c.head_dim}); };
  const Tensor group_mask = mask.defined() ? mask.repeat({group, 1}) : mask;
  const auto optionally = [](const Tensor& tensor) {
    return tensor.defined() ? std::optional<Tensor>(tensor) : std::nullopt;
  };
  if (c.rival == "torch_matmul") {
    return {{"group as queries", [=](const Layer& layer) {
               Tensor scores = at::matmul(as_group(layer.dense_query), layer.dense_key.transpose(2, 3));
               scores.mul_(1.0 / std::sqrt(static_cast<double>(c.head_dim)));
               if (group_mask.defined()) scores.add_(group_mask);
               return from_group(at::matmul(at::softmax(scores, -1), layer.dense_value));
             }}};
  }
  const auto sdpa = [=](const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& hidden) {
    return at::scaled_dot_product_attention(query, key, value, optionally(hidden), 0.0, false, {},
                                            query.size(1) != key.size(1));
  };
  std::vector<RivalForm> forms = {{"[B, H, S, D] contiguous", [=](const Layer& layer) {
                                     return sdpa(layer.dense_query, layer.dense_key, layer.dense_value, mask);
                                   }}};
  if (c.layout == "token") {
    forms.push_back({"[B, S, H, D] transposed", [=](const Layer& layer) {
                       return sdpa(layer.dense_query, layer.key.transpose(1, 2), layer.value.transpose(1, 2), mask);
                     }});
  }
  if (group > 1) {
    forms.push_back({"group as queries", [=](const Layer& layer) {
                       return from_group(
                           sdpa(as_group(layer.dense_query), layer.dense_key, layer.dense_value, group_mask));
                     }});
  }
  return forms;
}

double check(const Case& c, const Layer& layer, const std::vector<RivalForm>& rivals) {
  const double tolerance = tolerance_of(type_of(c.dtype));
  const std::int64_t group = c.heads / c.kv_heads;
  const Tensor out = moh_step(c, layer);
  double worst = 0;
  for (const std::int64_t kv_head : std::set<std::int64_t>{0, c.kv_heads - 1}) {
    const auto reference = [&](const Tensor& gates) {
      return attention_reference(layer.query, layer.key, layer.value, gates, c.queries > 1, Tensor(), kv_head).out;
    };
    worst = std::max(
        worst, check_close(heads_of(out, kv_head * group, group), reference(layer.gates), tolerance, "moh's output"));
    const Tensor dense = reference(at::ones_like(layer.gates));
    for (const RivalForm& rival : rivals) {
      check_close(heads_of(rival.step(layer).transpose(1, 2), kv_head * group, group), dense, tolerance,
                  c.rival + "'s output");
    }
  }
  return worst;
}

Work work_of(const Case& c, const Tensor& gates) {
  return attention_forward(attention_work(gates, c.tokens, c.kv_heads, c.head_dim, c.queries > 1,
                                          static_cast<double>(at::elementSize(type_of(c.dtype)))));
}

}  // namespace

Row run_decode(const Case& c, const Options& options) {
  const c10::NoGradGuard no_grad;
  MOH_CHECK(c.queries <= c.tokens, "[bench] --queries ", c.queries, " must not exceed the cache of ", c.tokens,
            " tokens, which holds them");
  const std::vector<Layer> layers = make_layers(c, options);
  const std::vector<RivalForm> rivals = make_rivals(c, causal_mask(c, options.device));
  Measured measured;
  measured.max_abs_error = check(c, layers.back(), rivals);

  std::vector<Form> forms;
  for (const RivalForm& rival : rivals) {
    const auto all_layers = [&] {
      for (const Layer& layer : layers) rival.step(layer);
    };
    forms.push_back({rival.name, until_done(all_layers, options.device)});
  }
  const Form& rival = fastest(forms);
  measured.rival_form = rival.name;
  const auto moh = until_done(
      [&] {
        for (const Layer& layer : layers) moh_step(c, layer);
      },
      options.device);
  measured.timing = time_pair(moh, rival.run, options.seconds, options.pairs);
  const auto count = static_cast<double>(layers.size());
  measured.timing.moh_ms /= count;
  measured.timing.rival_ms /= count;
  Work work, rival_work;  // mean over the layers, whose heads differ
  for (const Layer& layer : layers) {
    const Work each = work_of(c, layer.gates), dense = work_of(c, at::ones_like(layer.gates));
    work = {work.flops + each.flops / count, work.bytes + each.bytes / count};
    rival_work = {rival_work.flops + dense.flops / count, rival_work.bytes + dense.bytes / count};
    measured.activated = active_share(layer.gates);
  }
  measured.work = {work};
  measured.rival_work = {rival_work};
  Row row = make_row("decode", c, options, measured);
  row["queries"] = c.queries;
  row["layout"] = c.layout;
  row["caches"] = layers.size();
  return row;
}

}  // namespace moh::bench
