// AdamW in a group of processes, each of which keeps moments and updates weights for its part of every bucket alone.
//
// Parameters lie in buckets, in the order in which the backward pass is expected to finish them. A bucket is one row of
// numbers, cut into as many equal chunks as there are processes:
//
//   backward   when all gradients of a bucket are there, chunk r of it goes to process r, while backward goes on;
//              process r adds up what comes, in the order of the processes, in fp32
//   step       the norm is summed over all chunks; process r updates chunk r
//   after it   everybody gets all chunks of the weights
//
// So every process sends (n - 1) / n of the gradients and as much of the weights a step, as an all-reduce would. The
// sum is the same to the bit for the same number of processes, however late one is.
#pragma once

#include <memory>

#include "moh/train/optimizer.h"

namespace moh::train {

constexpr std::int64_t kBucketNumbers = 4 << 20;  // 16 MB of fp32: large enough to fill a wire, many enough to overlap
constexpr std::size_t kBucketsOnTheWay = 4;       // at a time, so that their memory stays bounded

class ShardedAdamW : public Optimizer {
 public:
  ShardedAdamW(io::NamedTensors parameters, const std::vector<bool>& decays, const AdamWOptions& options,
               const distributed::Group& group, at::ScalarType reduce);
  ~ShardedAdamW() override;
  void begin_last_backward() override;
  void scale_gradients(double factor) override;
  double clip_gradients(double max_norm) override;
  void step(double lr) override;
  void clear_gradients() override;
  void save(const std::string& folder) const override;
  void load(const std::string& folder) override;

 private:
  struct Hook;
  struct Slice;
  struct Bucket;
  void gradient_is_there(std::size_t parameter);
  void launch_ready();
  void launch(Bucket& bucket);
  void receive(Bucket& bucket);
  void finish_gradients();

  io::NamedTensors parameters_;
  std::vector<bool> decays_;
  AdamWOptions options_;
  const distributed::Group& group_;
  at::ScalarType reduce_;
  std::vector<Bucket> buckets_;
  std::vector<std::pair<std::size_t, std::int64_t>> places_;  // of each parameter: bucket, offset; kNowhere if frozen
  std::vector<double> used_;                                  // by this process in this step, then by any
  std::size_t launched_ = 0, received_ = 0;
  bool last_backward_ = false;
};

}  // namespace moh::train
