// moh bench dit: a DiT's forward pass as sampling runs it. Rivals: dense_twin, the dense DiT of that size on the same
// kernels; authors_form, the MoH model by LibTorch's operations, every head computed and multiplied by its gate;
// torch_dense, the dense twin by LibTorch's operations.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <unordered_map>

#include "bench/common.h"
#include "bench/plain_dit.h"
#include "bench/reference.h"
#include "moh/base/error.h"
#include "moh/ops/memory_pool.h"
#include "moh/models/dit_cost.h"
#include "moh/ops/autocast.h"

namespace moh::bench {
namespace {

using at::Tensor;

// moh-dit-xl-2-75 -> dit-xl-2.
models::DitConfig dense_config_of(const std::string& preset) {
  MOH_CHECK(models::is_dit_preset(preset) && preset.starts_with("moh-"), "[bench] --preset must be a MoH DiT, got `",
            preset, "`; `moh info` lists them");
  std::string name = preset.substr(4);
  if (name.ends_with("-75") || name.ends_with("-90")) name.resize(name.size() - 3);
  return models::dit_preset(name);
}

// What starts as zero (adaLN, output, biases) gets values, so that every part of the model shows in the result.
models::Dit random_model(const models::DitConfig& config, std::uint64_t seed) {
  models::Dit model = models::Dit::initialize(config, seed);
  const at::Generator random = at::detail::createCPUGenerator(seed + 1);
  for (const auto& [name, tensor] : model.parameters()) {
    if (tensor.count_nonzero().item<std::int64_t>() == 0) Tensor(tensor).normal_(0.0, 0.02, random);
  }
  return model;
}

// The dense twin with the MoH model's own weights wherever their shapes agree: less memory, and both read the same.
models::Dit twin_of(const models::Dit& model, const models::DitConfig& config, std::uint64_t seed) {
  std::unordered_map<std::string, Tensor> known(model.parameters().begin(), model.parameters().end());
  const at::Generator random = at::detail::createCPUGenerator(seed);
  io::NamedTensors tensors;
  for (const auto& spec : models::dit_parameters(config)) {
    const auto found = known.find(spec.name);
    const bool same = found != known.end() && found->second.sizes() == at::IntArrayRef(spec.shape);
    tensors.emplace_back(spec.name, same ? found->second : at::empty(spec.shape).normal_(0.0, 0.03, random));
  }
  return models::Dit(config, std::move(tensors));
}

double active_share(const std::vector<ops::Routing>& routing) {
  double active = 0, all = 0;
  for (const auto& layer : routing) {
    active += static_cast<double>(layer.gates.count_nonzero().item<std::int64_t>());
    all += static_cast<double>(layer.gates.numel());
  }
  return active / all;
}

}  // namespace

Row run_dit(const Case& given, const Options& options) {
  const c10::NoGradGuard no_grad;
  Case c = given;
  models::DitConfig dense_config = dense_config_of(c.preset), config = models::dit_preset(c.preset);
  const auto side = static_cast<std::int64_t>(std::lround(std::sqrt(static_cast<double>(c.tokens))));
  MOH_CHECK(side * side == c.tokens, "[bench] a DiT's pictures are square: --tokens must be a square number, got ",
            c.tokens);
  config.input_size = dense_config.input_size = side * config.patch_size;
  c.heads = 0;
  for (const std::int64_t heads : config.num_heads) c.heads += heads;
  c.heads = c.kv_heads = c.heads / config.depth;  // on average: head counts vary by layer
  c.head_dim = config.head_dim;
  c.causal = "no";

  const models::Dit model = random_model(config, options.seed);
  const at::Generator random = at::detail::createCPUGenerator(options.seed + 2);
  const Tensor x = at::randn({c.batch, config.in_channels, config.input_size, config.input_size}, random,
                             at::TensorOptions(at::kFloat));
  const Tensor t = at::randint(1000, {c.batch}, random, at::TensorOptions(at::kLong));
  const Tensor y = at::randint(config.num_classes, {c.batch}, random, at::TensorOptions(at::kLong));
  const auto autocast = ops::autocast_type(c.dtype);
  const ops::MemoryPool pool;  // for both sides, as in sampling

  Measured measured;
  PlainDit authors(model);
  {
    const ops::Autocast scope(autocast);
    const Tensor one = x.narrow(0, 0, 1), t_one = t.narrow(0, 0, 1), y_one = y.narrow(0, 0, 1);
    const auto output = model.forward(one, t_one, y_one);
    measured.activated = active_share(output.routing);
    // Rounding grows over the layers.
    measured.max_abs_error = check_close(output.y, authors.forward(one, t_one, y_one, &output.routing),
                                         5 * tolerance_of(type_of(c.dtype)), "the MoH-DiT's output");
  }
  std::optional<models::Dit> twin;
  if (c.rival != "authors_form") twin.emplace(twin_of(model, dense_config, options.seed));
  PlainDit plain(twin ? *twin : model);
  const auto run = [&](auto&& forward) {
    const ops::Autocast scope(autocast);
    forward();
  };
  const bool own_kernels = c.rival == "dense_twin";
  if (own_kernels) {
    const ops::Autocast scope(autocast);
    check_close(twin->forward(x, t, y).y, plain.forward(x, t, y), 5 * tolerance_of(type_of(c.dtype)),
                "the dense twin's output");
  } else {
    const auto form = [&](bool fused) {
      return [&, fused] {
        plain.set_fused(fused);
        run([&] { plain.forward(x.narrow(0, 0, 1), t.narrow(0, 0, 1), y.narrow(0, 0, 1)); });
      };
    };
    measured.rival_form = fastest({{"fused attention", form(true)}, {"batched products", form(false)}}).name;
    plain.set_fused(measured.rival_form == "fused attention");
  }
  measured.timing = time_pair([&] { run([&] { model.forward(x, t, y); }); },
                              [&] {
                                run([&] {
                                  if (own_kernels) {
                                    twin->forward(x, t, y);
                                  } else {
                                    plain.forward(x, t, y);
                                  }
                                });
                              },
                              options.seconds, options.pairs);

  // Ideal by FLOPs alone, routers included.
  const auto cost = models::dit_cost(config, c.tokens);
  const auto batch = static_cast<double>(c.batch);
  const double rival_flops = twin ? models::dit_cost(dense_config, c.tokens).flops : cost.dense_flops;
  measured.work = {{cost.flops * batch, 0}};
  measured.rival_work = {{rival_flops * batch, 0}};
  Row row = make_row("dit", c, options, measured);
  row["preset"] = c.preset;
  row["parameters"] = cost.parameters;
  row["images_per_second"] = 1e3 * batch / measured.timing.moh_ms;
  row["attention_flops_share"] = cost.attention_share;
  row["head_flops_share"] = cost.head_share;
  return row;
}

}  // namespace moh::bench
