#include "moh/diffusion/sampler.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <optional>

#include "moh/base/error.h"
#include "moh/data/epoch_order.h"
#include "moh/diffusion/dpm_solver.h"
#include "moh/diffusion/gaussian.h"

namespace moh::diffusion {

using at::Tensor;

Sampler::Sampler(SamplerOptions options) : options_(std::move(options)) {
  MOH_CHECK(options_.sampler == "ddpm" || options_.sampler == "ddim" || options_.sampler == "dpm++",
            "[sample] sampler must be ddpm, ddim or dpm++, got `", options_.sampler, "`");
  MOH_CHECK(options_.eta >= 0 && options_.eta <= 1, "[sample] eta must be in 0..1, got ", options_.eta);
  MOH_CHECK(options_.guided_channels > 0, "[sample] guided channels must be positive, got ", options_.guided_channels);
  // A second-order solver wants even steps in log SNR: with even ones in t the last, to step 0, is six times as long as
  // the one before it.
  const bool is_number = options_.steps.find_first_not_of("0123456789") == std::string::npos;
  const bool squared = options_.sampler == "dpm++" && is_number;
  schedule_ = respaced(linear_schedule(), squared ? "quad" + options_.steps : options_.steps);
}

Tensor Sampler::run(const Network& network, const std::vector<std::int64_t>& shape, const Pictures& pictures,
                    std::int64_t no_label, const std::function<bool(std::int64_t)>& on_step, at::Device device) const {
  const auto count = static_cast<std::int64_t>(pictures.numbers.size());
  MOH_CHECK(pictures.labels.size() == pictures.numbers.size(), "[sample] ", pictures.labels.size(), " labels for ",
            count, " pictures");
  const c10::NoGradGuard no_grad;
  std::vector<at::Generator> random;
  for (const std::int64_t number : pictures.numbers) {
    random.push_back(
        at::detail::createCPUGenerator(data::example_seed(pictures.seed, static_cast<std::uint64_t>(number))));
  }
  std::vector<std::int64_t> sizes = shape;
  sizes.insert(sizes.begin(), count);
  Tensor drawn = at::empty(sizes, at::TensorOptions(at::kFloat));
  const auto noise = [&] {
    for (std::int64_t i = 0; i < count; ++i) drawn[i].normal_(0.0, 1.0, random[i]);
    return device.is_cpu() ? drawn : drawn.to(device);
  };

  const bool guided = options_.guidance != 1.0;
  Tensor labels = at::tensor(pictures.labels, at::TensorOptions(at::kLong)).to(device);
  if (guided) labels = at::cat({labels, at::full_like(labels, no_label)});
  const std::int64_t channels = std::min<std::int64_t>(options_.guided_channels, shape[0]);
  DpmSolver solver(schedule_);
  Tensor x = noise().clone();
  for (std::int64_t step = steps() - 1; step >= 0; --step) {
    const Tensor seen = at::full({labels.size(0)}, schedule_.timestep_map[step], labels.options());
    Tensor output = network(guided ? at::cat({x, x}) : x, seen, labels).to(at::kFloat);
    if (guided) output = guide(output, options_.guidance, channels).narrow(0, 0, count);
    const Tensor t = at::full({count}, step, at::TensorOptions(at::kLong));
    if (options_.sampler == "dpm++") {
      x = solver.step(output, x, step, options_.clip);
    } else if (options_.sampler == "ddim") {
      x = ddim_step(schedule_, output, x, t, options_.eta > 0 ? noise() : drawn, options_.eta, options_.clip);
    } else {
      x = ancestral_step(schedule_, output, x, t, noise(), options_.clip);
    }
    if (on_step && !on_step(steps() - step)) return {};
  }
  return x;
}

}  // namespace moh::diffusion
