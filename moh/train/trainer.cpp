#include "moh/train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <filesystem>

#include "moh/base/error.h"
#include "moh/ops/autocast.h"
#include "moh/train/ema.h"
#include "moh/train/optimizer.h"
#include "moh/train/schedule.h"
#include "moh/train/train_state.h"

namespace moh::train {

struct Trainer::Impl {
  TrainConfig config;
  Task& task;
  RunFolder folder;
  TrainLog log;
  AdamW optimizer;
  std::optional<Ema> ema;
  Schedule schedule;
  TrainState state;
  Rate rate;

  Impl(TrainConfig train_config, Task& train_task, std::string out, Listener heard)
      : config(std::move(train_config)),
        task(train_task),
        folder(std::move(out)),
        log(folder.path(), std::move(heard)),
        optimizer(task.parameters(), task.decays(), {config.beta1, config.beta2, config.eps, config.weight_decay}),
        schedule{config.lr, config.final_lr, config.warmup, config.steps, config.warmup_lr, config.epoch_steps} {
    state.scale = LossScale::of(ops::autocast_type(config.dtype) == at::kHalf);
    if (config.ema > 0) ema.emplace(task.parameters(), config.ema);
  }

  void save_model(const std::string& to) const {
    task.save_model(to);
    if (ema) io::save_tensors(to + "/" + kAveragedFile, ema->values());
  }

  void save_checkpoint() const {
    folder.save_checkpoint(state.step, config.keep, [&](const std::string& into) {
      save_model(into);
      io::NamedTensors tensors = optimizer.state();
      tensors.emplace_back("rng", at::detail::getDefaultCPUGenerator().get_state());
      io::save_tensors(into + "/optimizer.safetensors", tensors);
      Json trainer = state_json(state);
      trainer["train"] = to_json(config);
      io::save_json(into + "/trainer.json", trainer);
    });
  }

  void load_checkpoint(const std::string& checkpoint) {
    load_state(checkpoint + "/trainer.json", config.batch, state);
    const io::NamedTensors tensors = io::load_tensors(checkpoint + "/optimizer.safetensors");
    optimizer.load_state(tensors);
    if (ema) {
      const std::string averaged = checkpoint + "/" + kAveragedFile;
      MOH_CHECK(std::filesystem::exists(averaged), "[train] ", checkpoint,
                " has no averaged weights; resume with --ema 0");
      ema->load(io::load_tensors(averaged));
    }
    for (const auto& [name, tensor] : tensors) {
      if (name != "rng") continue;
      at::Generator generator = at::detail::getDefaultCPUGenerator();
      generator.set_state(tensor);
    }
  }

  void check_finite(const char* what, double value) const {
    MOH_CHECK(std::isfinite(value), "[train] the ", what, " of step ", state.step + 1,
              " is not finite; the last checkpoint is ", folder.last_checkpoint(), "; try a lower --lr");
  }

  // One optimizer step; the mean over the parts of the batch.
  BatchLoss train_step(double& gradient_norm) {
    BatchLoss total;
    total.active_heads = 0;
    const std::int64_t part = config.batch / config.accumulate;
    const double weight = 1.0 / static_cast<double>(config.accumulate);
    for (std::int64_t i = 0; i < config.accumulate; ++i) {
      BatchLoss loss = task.loss(state.examples + i * part, part);
      check_finite("loss", loss.loss);
      check_finite("load-balance loss", loss.load_balance_loss);
      (loss.objective * (weight * state.scale.value)).backward();
      total.loss += loss.loss * weight;
      total.load_balance_loss += loss.load_balance_loss * weight;
      total.active_heads += loss.active_heads * weight;
      if (loss.distill_loss) total.distill_loss = total.distill_loss.value_or(0) + *loss.distill_loss * weight;
      total.items += loss.items;
      total.extra = std::move(loss.extra);
    }
    optimizer.scale_gradients(1 / state.scale.value);
    gradient_norm = optimizer.clip_gradients(config.clip);
    if (!std::isfinite(gradient_norm) && state.scale.can_shrink()) {  // this step's examples are lost, nothing else is
      state.scale.shrink();
      optimizer.clear_gradients();
      return total;
    }
    check_finite("gradient", gradient_norm);
    optimizer.step(schedule(state.step));
    optimizer.clear_gradients();
    state.scale.grow_if_due();
    if (ema) ema->update();
    return total;
  }

  void add_validation(Json& line) {
    const auto validation = task.validate();
    if (!validation) return;
    line["valid_loss"] = validation->loss;
    if (validation->perplexity) line["valid_perplexity"] = *validation->perplexity;
    for (const auto& [name, value] : validation->scores) line["valid_" + name] = value;
  }

  void validate_before_training() {
    Json line = Json::object();
    line["step"] = 0;
    line[task.unit()] = 0;
    add_validation(line);
    if (line.contains("valid_loss")) log.write(line);
  }

  Json line_of(const BatchLoss& loss, double lr, double gradient_norm, double items_per_second) const {
    Json line = Json::object();
    line["step"] = state.step;
    line[task.unit()] = state.items;
    line["loss"] = loss.loss;
    line["load_balance_loss"] = loss.load_balance_loss;
    if (loss.distill_loss) line["distill_loss"] = *loss.distill_loss;
    line["lr"] = lr;
    if (std::isfinite(gradient_norm)) line["grad_norm"] = gradient_norm;
    if (state.scale.dynamic) {
      line["loss_scale"] = state.scale.value;
      line["skipped_steps"] = state.scale.skipped_steps;
    }
    line[task.unit() + "_per_second"] = items_per_second;
    line["active_heads"] = loss.active_heads;
    for (const auto& [name, value] : loss.extra) line[name] = value;
    return line;
  }

  bool run(const std::atomic<bool>& stop) {
    folder.remove_leftovers();
    log.open(state.step);
    if (state.step == 0) validate_before_training();
    rate.reset();
    while (state.step < config.steps) {
      if (stop) {
        save_checkpoint();
        return false;
      }
      double gradient_norm = 0;
      const double lr = schedule(state.step);
      const BatchLoss loss = train_step(gradient_norm);
      ++state.step;
      state.examples += config.batch;
      state.items += loss.items;
      const double items_per_second = rate.add(loss.items);
      log.stepped(state.step, config.steps, items_per_second);
      const bool last = state.step == config.steps;
      const auto due = [&](std::int64_t every) { return last || (every > 0 && state.step % every == 0); };
      if (due(config.log_every) || due(config.validate_every)) {
        Json line = line_of(loss, lr, gradient_norm, items_per_second);
        if (due(config.validate_every)) add_validation(line);
        log.write(line);
        rate.reset();
      }
      if (config.illustrate_every > 0 && due(config.illustrate_every)) {
        task.illustrate(folder.path(), state.step, ema ? &ema->values() : nullptr);
        rate.reset();
      }
      if (due(config.checkpoint_every)) {
        save_checkpoint();
        rate.reset();
      }
    }
    save_model(folder.path());
    return true;
  }
};

Trainer::Trainer(TrainConfig config, Task& task, std::string folder, Listener listener) {
  check_train_config(config);
  impl_ = std::make_unique<Impl>(std::move(config), task, std::move(folder), std::move(listener));
}

Trainer::~Trainer() = default;

void Trainer::resume(const std::string& checkpoint) { impl_->load_checkpoint(checkpoint); }

bool Trainer::run(const std::atomic<bool>& stop) { return impl_->run(stop); }

}  // namespace moh::train
