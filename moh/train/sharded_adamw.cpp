#include "moh/train/sharded_adamw.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <cmath>

#include "moh/base/error.h"
#include "moh/train/optimizer_state.h"

namespace moh::train {

using at::Tensor;

namespace {

constexpr std::int64_t kLeastBucketNumbers = 1 << 16;
constexpr std::size_t kNowhere = ~std::size_t{0};

}  // namespace

struct ShardedAdamW::Hook : torch::autograd::PostAccumulateGradHook {
  Hook(ShardedAdamW& to, std::size_t which) : owner(to), parameter(which) {}
  void operator()(const torch::autograd::Variable&) override { owner.gradient_is_there(parameter); }
  ShardedAdamW& owner;
  std::size_t parameter;
};

// The part of a parameter that lies in this process's chunk of a bucket.
struct ShardedAdamW::Slice {
  std::size_t parameter;
  std::int64_t begin, length;  // in the flattened parameter
  std::int64_t at;             // in the chunk
  Tensor first, second, steps;
};

struct ShardedAdamW::Bucket {
  std::vector<std::size_t> members;
  std::vector<Slice> mine;
  std::int64_t chunk = 0;   // numbers a process
  std::size_t awaited = 0;  // gradients that are not there yet
  Tensor sent, received;    // [n, chunk] in the type of reduction, while on the way
  Tensor gradient;          // [chunk] fp32: the sum
  std::unique_ptr<distributed::Pending> pending;
};

ShardedAdamW::ShardedAdamW(io::NamedTensors parameters, const std::vector<bool>& decays, const AdamWOptions& options,
                           const distributed::Group& group, at::ScalarType reduce)
    : parameters_(std::move(parameters)),
      decays_(decays),
      options_(options),
      group_(group),
      reduce_(reduce),
      places_(parameters_.size(), {kNowhere, 0}),
      used_(parameters_.size(), 0) {
  // The last parameters' gradients come first. Small models have smaller buckets, or there would be nothing to send
  // before the backward pass ends.
  std::int64_t numbers = 0, all = 0;
  for (const auto& [name, parameter] : parameters_) all += parameter.requires_grad() ? parameter.numel() : 0;
  const std::int64_t most = std::clamp(all / 16, kLeastBucketNumbers, kBucketNumbers);
  for (std::size_t i = parameters_.size(); i-- > 0;) {
    const Tensor& parameter = parameters_[i].second;
    if (!parameter.requires_grad()) continue;
    MOH_CHECK(parameter.is_cpu() && parameter.scalar_type() == at::kFloat,
              "[distributed] several processes train fp32 ", "weights on the CPU; `", parameters_[i].first, "` is ",
              parameter.scalar_type(), " on ", parameter.device());
    if (buckets_.empty() || (numbers > 0 && numbers + parameter.numel() > most)) {
      buckets_.emplace_back();
      numbers = 0;
    }
    places_[i] = {buckets_.size() - 1, numbers};
    buckets_.back().members.push_back(i);
    numbers += parameter.numel();
    buckets_.back().chunk = (numbers + group_.size() - 1) / group_.size();
  }
  for (Bucket& bucket : buckets_) {
    const std::int64_t from = bucket.chunk * group_.rank(), to = from + bucket.chunk;
    bucket.gradient = at::zeros({bucket.chunk}, at::TensorOptions(at::kFloat));
    for (const std::size_t i : bucket.members) {
      const std::int64_t offset = places_[i].second;
      const std::int64_t begin = std::max(from, offset), end = std::min(to, offset + parameters_[i].second.numel());
      if (begin >= end) continue;
      const Tensor zeros = at::zeros({end - begin}, at::TensorOptions(at::kFloat));
      bucket.mine.push_back({i, begin - offset, end - begin, begin - from, zeros, zeros.clone(),
                             at::zeros({}, at::TensorOptions(at::kFloat))});
    }
  }
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (places_[i].first == kNowhere) continue;
    torch::autograd::impl::set_post_acc_grad_hooks(parameters_[i].second, std::make_unique<Hook>(*this, i));
  }
}

ShardedAdamW::~ShardedAdamW() {
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (places_[i].first == kNowhere) continue;
    torch::autograd::impl::set_post_acc_grad_hooks(parameters_[i].second, nullptr);
  }
}

void ShardedAdamW::begin_last_backward() {
  last_backward_ = true;
  launched_ = received_ = 0;
  for (Bucket& bucket : buckets_) bucket.awaited = bucket.members.size();
  std::fill(used_.begin(), used_.end(), 0);
}

void ShardedAdamW::gradient_is_there(std::size_t parameter) {
  if (!last_backward_) return;
  Bucket& bucket = buckets_[places_[parameter].first];
  Tensor& gradient = parameters_[parameter].second.mutable_grad();
  const c10::NoGradGuard no_grad;
  if (!bucket.sent.defined()) {
    bucket.sent = at::zeros({group_.size(), bucket.chunk}, at::TensorOptions(reduce_));
  }
  bucket.sent.view(-1).narrow(0, places_[parameter].second, gradient.numel()).copy_(gradient.reshape(-1));
  gradient = Tensor();
  used_[parameter] = 1;
  --bucket.awaited;
  launch_ready();
}

// In the order of the buckets, since all processes must send in the same; which gradients come first may differ.
void ShardedAdamW::launch_ready() {
  while (launched_ < buckets_.size() && buckets_[launched_].awaited == 0) launch(buckets_[launched_++]);
}

void ShardedAdamW::launch(Bucket& bucket) {
  if (!bucket.sent.defined()) bucket.sent = at::zeros({group_.size(), bucket.chunk}, at::TensorOptions(reduce_));
  bucket.received = at::empty_like(bucket.sent);
  bucket.pending = group_.exchange(bucket.sent, bucket.received, "gradients");
  if (launched_ > received_ + kBucketsOnTheWay) receive(buckets_[received_++]);
}

void ShardedAdamW::receive(Bucket& bucket) {
  bucket.pending->wait();
  bucket.pending.reset();
  bucket.gradient.copy_(bucket.received[0]);
  for (int i = 1; i < group_.size(); ++i) bucket.gradient.add_(bucket.received[i]);
  bucket.sent = bucket.received = Tensor();
}

void ShardedAdamW::finish_gradients() {
  if (!last_backward_) return;
  last_backward_ = false;
  const c10::NoGradGuard no_grad;
  // What this process's examples did not use is zero; a gradient of an earlier part of the batch counts, though.
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (places_[i].first == kNowhere || used_[i] != 0) continue;
    Tensor& gradient = parameters_[i].second.mutable_grad();
    if (!gradient.defined()) continue;
    Bucket& bucket = buckets_[places_[i].first];
    if (!bucket.sent.defined()) {
      bucket.sent = at::zeros({group_.size(), bucket.chunk}, at::TensorOptions(reduce_));
    }
    bucket.sent.view(-1).narrow(0, places_[i].second, gradient.numel()).copy_(gradient.reshape(-1));
    gradient = Tensor();
    used_[i] = 1;
  }
  while (launched_ < buckets_.size()) launch(buckets_[launched_++]);
  while (received_ < buckets_.size()) receive(buckets_[received_++]);
}

void ShardedAdamW::scale_gradients(double factor) {
  finish_gradients();
  if (factor == 1) return;
  for (Bucket& bucket : buckets_) bucket.gradient.mul_(factor);
}

double ShardedAdamW::clip_gradients(double max_norm) {
  finish_gradients();
  std::vector<double> sums = used_;
  double squares = 0;
  for (const Bucket& bucket : buckets_) {
    const double norm = at::linalg_vector_norm(bucket.gradient, 2, {}, false, at::kDouble).item<double>();
    squares += norm * norm;
  }
  sums.push_back(squares);
  group_.sum(sums, "norm of the gradient");
  const double norm = std::sqrt(sums.back());
  sums.pop_back();
  used_ = sums;
  if (max_norm > 0 && norm > max_norm) {
    for (Bucket& bucket : buckets_) bucket.gradient.mul_(max_norm / (norm + 1e-6));
  }
  return norm;
}

void ShardedAdamW::step(double lr) {
  const c10::NoGradGuard no_grad;
  struct OnTheWay {
    Tensor all;
    std::unique_ptr<distributed::Pending> pending;
  };
  std::vector<OnTheWay> gathered(buckets_.size());
  const auto take = [&](std::size_t index) {
    gathered[index].pending->wait();
    for (const std::size_t i : buckets_[index].members) {
      const Tensor& parameter = parameters_[i].second;
      parameter.detach().view(-1).copy_(gathered[index].all.view(-1).narrow(0, places_[i].second, parameter.numel()));
    }
    gathered[index] = {};
  };
  std::size_t taken = 0;
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    Bucket& bucket = buckets_[b];
    Tensor chunk = at::zeros({bucket.chunk}, at::TensorOptions(at::kFloat));
    for (const bool decays : {true, false}) {
      std::vector<Tensor> parameters, gradients, first, second, steps;
      for (const Slice& slice : bucket.mine) {
        const Tensor weights = chunk.narrow(0, slice.at, slice.length);
        if (decays) {  // once for each slice
          weights.copy_(parameters_[slice.parameter].second.detach().view(-1).narrow(0, slice.begin, slice.length));
        }
        if (decays_[slice.parameter] != decays || used_[slice.parameter] == 0) continue;
        parameters.push_back(weights);
        gradients.push_back(bucket.gradient.narrow(0, slice.at, slice.length));
        first.push_back(slice.first);
        second.push_back(slice.second);
        steps.push_back(slice.steps);
      }
      if (parameters.empty()) continue;
      at::_foreach_add_(steps, 1);
      at::_fused_adamw_(parameters, gradients, first, second, /*max_exp_avg_sqs=*/{}, steps, lr, options_.beta1,
                        options_.beta2, decays ? options_.weight_decay : 0.0, options_.eps, /*amsgrad=*/false,
                        /*maximize=*/false);
    }
    gathered[b].all = at::empty({group_.size(), bucket.chunk}, at::TensorOptions(at::kFloat));
    gathered[b].pending = group_.gather(chunk, gathered[b].all, "weights");
    if (b - taken >= kBucketsOnTheWay) take(taken++);
  }
  while (taken < buckets_.size()) take(taken++);
}

void ShardedAdamW::clear_gradients() {
  for (auto& [name, parameter] : parameters_) parameter.mutable_grad() = Tensor();
}

void ShardedAdamW::save(const std::string& folder) const {
  io::NamedTensors state;
  for (const Bucket& bucket : buckets_) {
    for (const Slice& slice : bucket.mine) {
      const std::string& name = parameters_[slice.parameter].first;
      state.emplace_back("first." + name, slice.first);
      state.emplace_back("second." + name, slice.second);
      state.emplace_back("step." + name, slice.steps);
      state.emplace_back("start." + name, at::tensor({slice.begin}, at::TensorOptions(at::kLong)));
    }
  }
  if (group_.rank() == 0) state.emplace_back("rng", generator_state());
  io::save_tensors(folder + "/" + optimizer_file(group_.rank(), group_.size()), state);
}

void ShardedAdamW::load(const std::string& folder) {
  const OptimizerState state(folder);
  for (Bucket& bucket : buckets_) {
    for (Slice& slice : bucket.mine) {
      const auto& [name, parameter] = parameters_[slice.parameter];
      state.read("first", name, parameter.numel(), slice.begin, slice.first);
      state.read("second", name, parameter.numel(), slice.begin, slice.second);
      slice.steps.copy_(state.whole("step." + name));
    }
  }
  if (state.has("rng")) set_generator_state(state.whole("rng"));
}

}  // namespace moh::train
