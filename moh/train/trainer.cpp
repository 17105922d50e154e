#include "moh/train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <chrono>
#include <cmath>
#include <filesystem>

#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/base/trace.h"
#include "moh/ops/autocast.h"
#include "moh/train/ema.h"
#include "moh/train/optimizer.h"
#include "moh/train/schedule.h"
#include "moh/train/train_state.h"

namespace moh::train {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

struct Trainer::Impl {
  TrainConfig config;
  Task& task;
  RunFolder folder;
  TrainLog log;
  const distributed::Group& group;
  std::unique_ptr<Optimizer> optimizer;
  std::optional<Ema> ema;
  Schedule schedule;
  TrainState state;
  Rate rate;
  bool stopped = false;         // somebody in the group was told to
  std::int64_t steps_made = 0;  // by this process; in training_seconds
  double training_seconds = 0, validation_seconds = 0;

  Impl(TrainConfig train_config, Task& train_task, std::string out, Listener heard, const distributed::Group& with)
      : config(std::move(train_config)),
        task(train_task),
        folder(std::move(out), with),
        log(folder.path(), std::move(heard), with.rank() == 0),
        group(with),
        optimizer(make_adamw(task.parameters(), task.decays(),
                             {config.beta1, config.beta2, config.eps, config.weight_decay}, group,
                             config.reduce_dtype == "bf16" ? at::kBFloat16 : at::kFloat)),
        schedule{config.lr, config.final_lr, config.warmup, config.steps, config.warmup_lr, config.epoch_steps} {
    state.scale = LossScale::of(ops::autocast_type(config.dtype) == at::kHalf);
    if (config.ema > 0 && group.rank() == 0) ema.emplace(task.parameters(), config.ema);
    task.join(group);
  }

  void save_model(const std::string& to) const {
    task.save_model(to);
    if (ema) io::save_tensors(to + "/" + kAveragedFile, ema->values());
  }

  void save_checkpoint() {
    Json trainer = state_json(state);
    trainer["train"] = to_json(config);
    const trace::Span span("checkpoint");
    folder.save_checkpoint(state.step, config.keep, std::move(trainer), [&](const std::string& into) {
      if (group.rank() == 0) save_model(into);
      optimizer->save(into);
    });
  }

  void load_checkpoint(const std::string& checkpoint) {
    load_state(checkpoint + "/trainer.json", config.batch, state);
    optimizer->load(checkpoint);
    if (ema) {
      const std::string averaged = checkpoint + "/" + kAveragedFile;
      MOH_CHECK(std::filesystem::exists(averaged), "[train] ", checkpoint,
                " has no averaged weights; resume with --ema 0");
      ema->load(io::load_tensors(averaged));
    }
    folder.has_checkpoint(state.step);
  }

  void check_finite(const char* what, double value) const {
    MOH_CHECK(std::isfinite(value), "[train] the ", what, " of step ", state.step + 1,
              " is not finite; the last checkpoint is ", folder.last_checkpoint(), "; try a lower --lr");
  }

  // Sums over the processes what each has of its share; in each place of `flags` one process says whether its losses
  // are finite, so that all stop with the same words.
  void add_up(BatchLoss& total, bool stop) {
    const auto size = static_cast<std::size_t>(group.size());
    std::vector<double> sums(size, 0);
    if (!std::isfinite(total.loss) || !std::isfinite(total.load_balance_loss)) sums[group.rank()] = 1;
    for (const double value : {total.loss, total.load_balance_loss, total.active_heads, total.distill_loss.value_or(0),
                               static_cast<double>(total.items), stop ? 1.0 : 0.0}) {
      sums.push_back(value);
    }
    group.sum(sums, "losses");
    for (std::size_t i = 0; i < size; ++i) {
      MOH_CHECK(sums[i] == 0, "[train] the loss of step ", state.step + 1, " is not finite in process ", i, " of ",
                size, "; the last checkpoint is ", folder.last_checkpoint(), "; try a lower --lr");
    }
    total.loss = sums[size];
    total.load_balance_loss = sums[size + 1];
    total.active_heads = sums[size + 2];
    if (total.distill_loss) total.distill_loss = sums[size + 3];
    total.items = static_cast<std::int64_t>(sums[size + 4]);
    stopped = sums[size + 5] > 0;
  }

  // One optimizer step; the mean over the parts of the batch.
  BatchLoss train_step(double& gradient_norm, const std::atomic<bool>& stop) {
    BatchLoss total;
    total.active_heads = 0;
    const std::int64_t part = config.batch / config.accumulate;
    for (std::int64_t i = 0; i < config.accumulate; ++i) {
      BatchLoss loss;
      {
        const trace::Span span("forward");
        loss = task.loss(state.examples + i * part, part);
      }
      if (group.alone()) {
        check_finite("loss", loss.loss);
        check_finite("load-balance loss", loss.load_balance_loss);
      }
      const double weight = loss.share / static_cast<double>(config.accumulate);
      if (i + 1 == config.accumulate) optimizer->begin_last_backward();
      {
        const trace::Span span("backward");
        (loss.objective * (weight * state.scale.value)).backward();
      }
      total.loss += loss.loss * weight;
      total.load_balance_loss += loss.load_balance_loss * weight;
      total.active_heads += loss.active_heads * weight;
      if (loss.distill_loss) total.distill_loss = total.distill_loss.value_or(0) + *loss.distill_loss * weight;
      total.items += loss.items;
      total.extra = std::move(loss.extra);
    }
    const trace::Span span("optimizer");
    optimizer->scale_gradients(1 / state.scale.value);
    if (!group.alone()) add_up(total, stop);
    gradient_norm = optimizer->clip_gradients(config.clip);
    if (!std::isfinite(gradient_norm) && state.scale.can_shrink()) {  // this step's examples are lost, nothing else is
      state.scale.shrink();
      optimizer->clear_gradients();
      return total;
    }
    check_finite("gradient", gradient_norm);
    optimizer->step(schedule(state.step));
    optimizer->clear_gradients();
    state.scale.grow_if_due();
    if (ema) ema->update();
    return total;
  }

  // Calls `work`, which ends within about a second of `stop` where no other process waits for it. False: it did.
  template <class Work>
  bool interruptibly(const std::atomic<bool>& stop, Work&& work) const {
    if (!group.alone()) {
      work();
      return true;
    }
    try {
      const Interruptible interruptible(stop);
      work();
      return true;
    } catch (const Interrupted&) {
      return false;
    }
  }

  // From the mean of this run's steps and the last validation.
  double seconds_left() const {
    const std::int64_t steps = config.steps - state.step, every = config.validate_every;
    const std::int64_t validations = every > 0 ? (config.steps + every - 1) / every - state.step / every : 1;
    return training_seconds / static_cast<double>(steps_made) * static_cast<double>(steps) +
           validation_seconds * static_cast<double>(validations);
  }

  // False: interrupted, nothing was added.
  bool add_validation(Json& line, const std::atomic<bool>& stop) {
    const trace::Span span("validation");
    const auto start = Clock::now();
    std::optional<Validation> validation;
    if (!interruptibly(stop, [&] { validation = task.validate(); })) return false;
    if (!validation) return true;
    validation_seconds = seconds_since(start);
    line["valid_loss"] = validation->loss;
    if (validation->perplexity) line["valid_perplexity"] = *validation->perplexity;
    for (const auto& [name, value] : validation->scores) line["valid_" + name] = value;
    return true;
  }

  bool validate_before_training(const std::atomic<bool>& stop) {
    Json line = Json::object();
    line["step"] = 0;
    line[task.unit()] = 0;
    if (!add_validation(line, stop)) return false;
    if (line.contains("valid_loss")) log.write(line);
    return true;
  }

  // Nothing of a step that was interrupted has happened.
  bool try_step(BatchLoss& loss, double& gradient_norm, const std::atomic<bool>& stop) {
    const auto start = Clock::now();
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const at::Tensor random = generator.get_state();
    if (!interruptibly(stop, [&] { loss = train_step(gradient_norm, stop); })) {
      optimizer->clear_gradients();
      generator.set_state(random);
      return false;
    }
    training_seconds += seconds_since(start);
    ++steps_made;
    return true;
  }

  bool save_and_stop() {
    save_checkpoint();
    return false;
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

  // Other weights or settings in one process would train something else in silence.
  void check_same_start() const {
    if (group.alone()) return;
    const auto size = static_cast<std::size_t>(group.size());
    std::vector<double> sums(2 * size, 0);
    for (const auto& [name, parameter] : task.parameters()) {
      sums[group.rank()] += parameter.detach().abs().sum(at::kDouble).item<double>();
    }
    sums[size + group.rank()] = static_cast<double>(std::hash<std::string>()(to_json(config).dump()) >> 11);
    group.sum(sums, "same start");
    for (std::size_t i = 1; i < size; ++i) {
      MOH_CHECK(sums[i] == sums[0], "[train] process ", i, " of ", size, " begins with other weights than process 0");
      MOH_CHECK(sums[size + i] == sums[size], "[train] process ", i, " of ", size,
                " has other settings than process 0");
    }
  }

  bool run(const std::atomic<bool>& stop) {
    check_same_start();
    folder.remove_leftovers();
    log.open(state.step);
    if (state.step == 0 && !validate_before_training(stop)) return save_and_stop();
    rate.reset();
    while (state.step < config.steps) {
      if (group.alone() ? stop.load() : stopped) return save_and_stop();
      double gradient_norm = 0;
      const double lr = schedule(state.step);
      BatchLoss loss;
      if (!try_step(loss, gradient_norm, stop)) return save_and_stop();
      ++state.step;
      state.examples += config.batch;
      state.items += loss.items;
      const double items_per_second = rate.add(loss.items);
      log.stepped({state.step, config.steps, items_per_second, seconds_left()});
      const bool last = state.step == config.steps;
      const auto due = [&](std::int64_t every) { return last || (every > 0 && state.step % every == 0); };
      if (due(config.log_every) || due(config.validate_every)) {
        Json line = line_of(loss, lr, gradient_norm, items_per_second);
        const bool goes_on = !due(config.validate_every) || add_validation(line, stop);
        log.write(line);
        if (!goes_on) return save_and_stop();
        rate.reset();
      }
      if (const std::int64_t every = task.illustrate_every(); every > 0 && due(every)) {
        if (group.rank() == 0) task.illustrate(folder.path(), state.step, ema ? &ema->values() : nullptr);
        rate.reset();
      }
      if (due(config.checkpoint_every)) {
        save_checkpoint();
        rate.reset();
      }
    }
    if (group.rank() == 0) save_model(folder.path());
    group.barrier("end");
    return true;
  }
};

Trainer::Trainer(TrainConfig config, Task& task, std::string folder, Listener listener,
                 const distributed::Group& group) {
  check_train_config(config);
  impl_ = std::make_unique<Impl>(std::move(config), task, std::move(folder), std::move(listener), group);
}

Trainer::Trainer(TrainConfig config, Task& task, std::string folder, Listener listener)
    : Trainer(std::move(config), task, std::move(folder), std::move(listener), distributed::alone()) {}

Trainer::~Trainer() = default;

void Trainer::resume(const std::string& checkpoint) { impl_->load_checkpoint(checkpoint); }

std::int64_t Trainer::step() const { return impl_->state.step; }

bool Trainer::run(const std::atomic<bool>& stop) { return impl_->run(stop); }

}  // namespace moh::train
