#include "moh/train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "moh/base/error.h"
#include "moh/io/event_writer.h"
#include "moh/io/files.h"
#include "moh/ops/autocast.h"
#include "moh/train/ema.h"
#include "moh/train/loss_scale.h"
#include "moh/train/optimizer.h"
#include "moh/train/schedule.h"

namespace moh::train {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
constexpr const char* kStepPrefix = "step-";
constexpr const char* kAveraged = "ema.safetensors";

void make_folder(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  MOH_CHECK(!error, "[train] cannot make folder ", folder, ": ", error.message());
}

// step-N -> N; -1 for any other name.
std::int64_t step_of(const std::string& name) {
  if (!name.starts_with(kStepPrefix) || name.size() == 5 || name.size() > 20) return -1;
  const std::string digits = name.substr(5);
  if (digits.find_first_not_of("0123456789") != std::string::npos) return -1;
  return std::stoll(digits);
}

std::vector<std::pair<std::int64_t, std::string>> checkpoints_of(const std::string& folder) {
  std::vector<std::pair<std::int64_t, std::string>> found;
  const std::string parent = folder + "/checkpoints";
  if (!fs::is_directory(parent)) return found;
  for (const auto& entry : fs::directory_iterator(parent)) {
    const std::int64_t step = step_of(entry.path().filename().string());
    if (step >= 0) found.emplace_back(step, entry.path().string());
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace

void check_train_config(const TrainConfig& config) {
  const auto at_least = [](const char* name, auto value, auto least) {
    MOH_CHECK(value >= least, "[train] ", name, " must be at least ", least, ", got ", value);
  };
  at_least("steps", config.steps, 1);
  at_least("batch", config.batch, 1);
  at_least("sequence", config.sequence, 1);
  at_least("accumulate", config.accumulate, 1);
  at_least("warmup", config.warmup, 0);
  at_least("epoch_steps", config.epoch_steps, 0);
  at_least("keep", config.keep, 1);
  at_least("log_every", config.log_every, 1);
  at_least("validate_every", config.validate_every, 0);
  at_least("checkpoint_every", config.checkpoint_every, 0);
  at_least("illustrate_every", config.illustrate_every, 0);
  MOH_CHECK(config.ema >= 0 && config.ema < 1, "[train] ema must be at least 0 and below 1, got ", config.ema);
  MOH_CHECK(config.batch % config.accumulate == 0, "[train] batch ", config.batch, " must be a multiple of accumulate ",
            config.accumulate);
  MOH_CHECK(config.lr > 0 && std::isfinite(config.lr), "[train] lr must be positive, got ", config.lr);
  MOH_CHECK(config.final_lr >= 0 && config.weight_decay >= 0 && config.clip >= 0,
            "[train] final_lr, weight_decay and clip must be at least 0");
  ops::autocast_type(config.dtype);
}

std::string newest_checkpoint(const std::string& folder) {
  const auto found = checkpoints_of(folder);
  return found.empty() ? "" : found.back().second;
}

struct Trainer::Impl {
  TrainConfig config;
  Task& task;
  std::string folder;
  Listener listener;
  AdamW optimizer;
  std::optional<Ema> ema;
  Schedule schedule;
  LossScale scale;
  io::EventWriter events;
  std::ofstream log;
  std::int64_t step = 0, items = 0;
  std::int64_t examples = 0;  // of the training data, taken in all steps so far, whatever their batches

  Impl(TrainConfig train_config, Task& train_task, std::string out, Listener heard)
      : config(std::move(train_config)),
        task(train_task),
        folder(std::move(out)),
        listener(std::move(heard)),
        optimizer(task.parameters(), task.decays(), {config.beta1, config.beta2, config.eps, config.weight_decay}),
        schedule{config.lr, config.final_lr, config.warmup, config.steps, config.warmup_lr, config.epoch_steps},
        scale(LossScale::of(ops::autocast_type(config.dtype) == at::kHalf)),
        events((make_folder(folder), folder)) {
    if (config.ema > 0) ema.emplace(task.parameters(), config.ema);
  }

  void save_model(const std::string& to) const {
    task.save_model(to);
    if (ema) io::save_tensors(to + "/" + kAveraged, ema->values());
  }

  void open_log(bool append) {
    const std::string path = folder + "/log.jsonl";
    log.open(path, append ? std::ios::app : std::ios::trunc);
    MOH_CHECK(log.good(), "[train] cannot write ", path);
  }

  // Lines of steps after the checkpoint are dropped: the resumed run writes them again.
  void trim_log() {
    const std::string path = folder + "/log.jsonl";
    if (!fs::exists(path)) return;
    std::ifstream old(path);
    std::string line, kept;
    while (std::getline(old, line)) {
      const Json entry = Json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (entry.is_object() && entry.value("step", std::int64_t{0}) <= step) kept += line + "\n";
    }
    old.close();
    io::write_file(path, kept);
  }

  // A folder step-N is complete or absent at every moment: it gets its name when all of it is on the disk, and loses it
  // before anything of it is removed.
  void save_checkpoint() {
    const std::string parent = folder + "/checkpoints", name = kStepPrefix + std::to_string(step);
    if (fs::exists(parent + "/" + name)) return;  // saved just now, then interrupted
    make_folder(parent);
    remove_unfinished(parent);
    const std::string unfinished = parent + "/." + name + ".unfinished";
    try {
      make_folder(unfinished);
      write_checkpoint(unfinished);
      fs::rename(unfinished, parent + "/" + name);
      io::fsync_folder(parent);
    } catch (const std::exception& error) {
      remove_unfinished(parent);  // a full disk gets its space back
      const std::string last = newest_checkpoint(folder);
      fail("[train] the checkpoint of step ", step, " could not be saved: ", error.what(), "; the last one is ",
           last.empty() ? "none" : last, ", make room and go on with --resume");
    }
    const auto all = checkpoints_of(folder);
    for (std::size_t i = 0; i + static_cast<std::size_t>(config.keep) < all.size(); ++i) {
      const std::string removed = parent + "/." + fs::path(all[i].second).filename().string() + ".removed";
      fs::rename(all[i].second, removed);
      fs::remove_all(removed);
    }
  }

  void write_checkpoint(const std::string& into) const {
    save_model(into);
    io::NamedTensors state = optimizer.state();
    state.emplace_back("rng", at::detail::getDefaultCPUGenerator().get_state());
    io::save_tensors(into + "/optimizer.safetensors", state);
    Json trainer = Json::object();
    trainer["step"] = step;
    trainer["items"] = items;
    trainer["examples"] = examples;
    if (scale.dynamic) {
      trainer["loss_scale"] = {
          {"value", scale.value}, {"good_steps", scale.good_steps}, {"skipped_steps", scale.skipped_steps}};
    }
    trainer["train"] = to_json(config);
    io::save_json(into + "/trainer.json", trainer);
    io::fsync_folder(into);
  }

  // What a run that was ended half-way left: names that begin with a dot.
  static void remove_unfinished(const std::string& parent) {
    std::vector<fs::path> left;
    for (const auto& entry : fs::directory_iterator(parent)) {
      if (entry.path().filename().string().starts_with(std::string(".") + kStepPrefix)) left.push_back(entry.path());
    }
    std::error_code ignored;  // tried again before the next checkpoint
    for (const auto& path : left) fs::remove_all(path, ignored);
  }

  void check_finite(const char* what, double value) const {
    if (std::isfinite(value)) return;
    const std::string last = newest_checkpoint(folder);
    fail("[train] the ", what, " of step ", step + 1, " is not finite; the last checkpoint is ",
         last.empty() ? "none" : last, "; try a lower --lr");
  }

  // One optimizer step; the mean over the parts of the batch.
  BatchLoss train_step(double& gradient_norm) {
    BatchLoss total;
    total.active_heads = 0;
    const std::int64_t part = config.batch / config.accumulate;
    const double weight = 1.0 / static_cast<double>(config.accumulate);
    for (std::int64_t i = 0; i < config.accumulate; ++i) {
      BatchLoss loss = task.loss(examples + i * part, part);
      check_finite("loss", loss.loss);
      check_finite("load-balance loss", loss.load_balance_loss);
      (loss.objective * (weight * scale.value)).backward();
      total.loss += loss.loss * weight;
      total.load_balance_loss += loss.load_balance_loss * weight;
      total.active_heads += loss.active_heads * weight;
      if (loss.distill_loss) total.distill_loss = total.distill_loss.value_or(0) + *loss.distill_loss * weight;
      total.items += loss.items;
      total.extra = std::move(loss.extra);
    }
    optimizer.scale_gradients(1 / scale.value);
    gradient_norm = optimizer.clip_gradients(config.clip);
    if (!std::isfinite(gradient_norm) && scale.can_shrink()) {  // this step's examples are lost, nothing else is
      scale.shrink();
      optimizer.clear_gradients();
      return total;
    }
    check_finite("gradient", gradient_norm);
    optimizer.step(schedule(step));
    optimizer.clear_gradients();
    scale.grow_if_due();
    if (ema) ema->update();
    return total;
  }

  void write_log(const Json& line) {
    log << line.dump() << "\n" << std::flush;
    MOH_CHECK(log.good(), "[train] cannot write ", folder, "/log.jsonl; is the disk full?");
    for (const auto& item : line.items()) {
      if (item.key() != "step" && item.value().is_number()) events.scalar(item.key(), item.value().get<double>(), step);
    }
    events.flush();
    if (listener.on_log) listener.on_log(line);
  }

  void add_validation(Json& line) {
    const auto validation = task.validate();
    if (!validation) return;
    line["valid_loss"] = validation->loss;
    if (validation->perplexity) line["valid_perplexity"] = *validation->perplexity;
    for (const auto& [name, value] : validation->scores) line["valid_" + name] = value;
  }

  bool run(const std::atomic<bool>& stop) {
    io::remove_stale_temporaries(folder);
    if (fs::is_directory(folder + "/checkpoints")) remove_unfinished(folder + "/checkpoints");
    if (step == 0) {
      open_log(/*append=*/false);
      Json line = Json::object();
      line["step"] = 0;
      line[task.unit()] = 0;
      add_validation(line);
      if (line.contains("valid_loss")) write_log(line);
    } else {
      trim_log();
      open_log(/*append=*/true);
    }
    auto since = Clock::now();
    std::int64_t items_since = 0;
    double rate = 0;
    while (step < config.steps) {
      if (stop) {
        save_checkpoint();
        return false;
      }
      double gradient_norm = 0;
      const double lr = schedule(step);
      const BatchLoss loss = train_step(gradient_norm);
      ++step;
      examples += config.batch;
      items += loss.items;
      items_since += loss.items;
      const bool last = step == config.steps;
      const auto due = [&](std::int64_t every) { return last || (every > 0 && step % every == 0); };
      const double seconds = std::chrono::duration<double>(Clock::now() - since).count();
      rate = static_cast<double>(items_since) / std::max(seconds, 1e-9);
      if (listener.on_step) listener.on_step(step, config.steps, rate);
      if (due(config.log_every) || due(config.validate_every)) {
        Json line = Json::object();
        line["step"] = step;
        line[task.unit()] = items;
        line["loss"] = loss.loss;
        line["load_balance_loss"] = loss.load_balance_loss;
        if (loss.distill_loss) line["distill_loss"] = *loss.distill_loss;
        line["lr"] = lr;
        if (std::isfinite(gradient_norm)) line["grad_norm"] = gradient_norm;
        if (scale.dynamic) {
          line["loss_scale"] = scale.value;
          line["skipped_steps"] = scale.skipped_steps;
        }
        line[task.unit() + "_per_second"] = rate;
        line["active_heads"] = loss.active_heads;
        for (const auto& [name, value] : loss.extra) line[name] = value;
        if (due(config.validate_every)) add_validation(line);
        write_log(line);
        since = Clock::now();
        items_since = 0;
      }
      if (config.illustrate_every > 0 && due(config.illustrate_every)) {
        task.illustrate(folder, step, ema ? &ema->values() : nullptr);
        since = Clock::now();
        items_since = 0;
      }
      if (due(config.checkpoint_every)) {
        save_checkpoint();
        since = Clock::now();
        items_since = 0;
      }
    }
    save_model(folder);
    return true;
  }
};

Trainer::Trainer(TrainConfig config, Task& task, std::string folder, Listener listener) {
  check_train_config(config);
  impl_ = std::make_unique<Impl>(std::move(config), task, std::move(folder), std::move(listener));
}

Trainer::~Trainer() = default;

void Trainer::resume(const std::string& checkpoint) {
  const std::string file = checkpoint + "/trainer.json";
  const Json trainer = parse_json(io::read_file(file, 1 << 20), file);
  MOH_CHECK(trainer.is_object() && trainer.contains("step") && trainer["step"].is_number_integer() &&
                trainer.contains("items") && trainer["items"].is_number_integer(),
            "[train] ", file, " is damaged: `step` or `items` is missing");
  io::NamedTensors state = io::load_tensors(checkpoint + "/optimizer.safetensors");
  impl_->optimizer.load_state(state);
  if (impl_->ema) {
    const std::string averaged = checkpoint + "/" + kAveraged;
    MOH_CHECK(fs::exists(averaged), "[train] ", checkpoint, " has no averaged weights; resume with --ema 0");
    impl_->ema->load(io::load_tensors(averaged));
  }
  for (const auto& [name, tensor] : state) {
    if (name != "rng") continue;
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    generator.set_state(tensor);
  }
  // A run in another type until now has none: it begins with the first scale.
  if (impl_->scale.dynamic && trainer.contains("loss_scale")) {
    const Json& kept = trainer["loss_scale"];
    const auto number = [&](const char* key) {
      MOH_CHECK(kept.is_object() && kept.contains(key) && kept[key].is_number(), "[train] ", file,
                " is damaged: `loss_scale` has no `", key, "`");
      return kept[key].get<double>();
    };
    impl_->scale.value = number("value");
    MOH_CHECK(impl_->scale.value > 0 && std::isfinite(impl_->scale.value), "[train] ", file,
              " is damaged: `loss_scale` must be positive, got ", impl_->scale.value);
    impl_->scale.good_steps = static_cast<std::int64_t>(number("good_steps"));
    impl_->scale.skipped_steps = static_cast<std::int64_t>(number("skipped_steps"));
  }
  impl_->step = trainer["step"].get<std::int64_t>();
  impl_->items = trainer["items"].get<std::int64_t>();
  // Checkpoints that do not say it were made with one batch size all along, which they do say.
  const std::int64_t batch = trainer.contains("train") && trainer["train"].is_object()
                                 ? trainer["train"].value("batch", impl_->config.batch)
                                 : impl_->config.batch;
  impl_->examples = impl_->step * batch;
  if (trainer.contains("examples")) {
    MOH_CHECK(trainer["examples"].is_number_integer() && trainer["examples"].get<std::int64_t>() >= 0, "[train] ", file,
              " is damaged: `examples` must be a number");
    impl_->examples = trainer["examples"].get<std::int64_t>();
  }
}

bool Trainer::run(const std::atomic<bool>& stop) { return impl_->run(stop); }

}  // namespace moh::train
