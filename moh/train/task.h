// What the training loop needs to know of a model and its data, whatever kind they are.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moh/distributed/group.h"
#include "moh/io/checkpoint.h"

namespace moh::train {

struct BatchLoss {
  at::Tensor objective;          // scalar that is differentiated: everything, weighted
  double loss = 0;               // the task's own loss
  double load_balance_loss = 0;  // mean over the routed layers, without beta
  std::optional<double> distill_loss;
  double active_heads = 1;                            // share measured on this batch
  std::int64_t items = 0;                             // tokens or images
  double share = 1;                                   // of the examples asked for: the others are other processes'
  std::vector<std::pair<std::string, double>> extra;  // what else the log shall say, by name
};

struct Validation {
  double loss = 0;
  std::optional<double> perplexity = {};  // of language
  double active_heads = 1;
  std::vector<std::pair<std::string, double>> scores = {};  // logged as valid_NAME
};

class Task {
 public:
  virtual ~Task() = default;
  virtual const io::NamedTensors& parameters() const = 0;
  virtual std::vector<bool> decays() const = 0;  // one for each parameter
  virtual std::string unit() const = 0;          // "tokens" or "images"
  // The loss of `count` examples, those numbered position .. position + count - 1 since the beginning of training; in a
  // group, of this process's share of them. Whatever is random about an example follows from the seed and its number,
  // so that means over the processes, weighted by their shares, are those of one process.
  virtual BatchLoss loss(std::int64_t position, std::int64_t count) = 0;
  // nullopt: no validation data. In a group each process does a part, and all get the result of the whole.
  virtual std::optional<Validation> validate() = 0;
  // config.json, model.safetensors and what else makes the folder usable.
  virtual void save_model(const std::string& folder) const = 0;
  virtual std::int64_t illustrate_every() const { return 0; }  // steps; 0: never
  // Writes something to look at into the training folder, made with the averaged weights unless `averaged` is null.
  virtual void illustrate(const std::string& /*folder*/, std::int64_t /*step*/,
                          const io::NamedTensors* /*averaged*/) const {}

  // From now on the work is shared with the other processes of `group`, which must outlive this.
  void join(const distributed::Group& group) { group_ = &group; }

 protected:
  const distributed::Group& group() const { return *group_; }

 private:
  const distributed::Group* group_ = &distributed::alone();
};

}  // namespace moh::train
