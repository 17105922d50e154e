// Next-token training of a LLaMA, dense or MoH, on a token stream; optionally distilled from a teacher.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "moh/data/token_mix.h"
#include "moh/eval/perplexity.h"
#include "moh/models/llama.h"
#include "moh/train/task.h"

namespace moh::train {

struct LanguageTaskOptions {
  std::int64_t sequence = 512;
  std::uint64_t seed = 0;
  std::optional<at::ScalarType> autocast;
  double distill_weight = 1.0;  // with a teacher: loss = weight * KL(teacher || student) + (1 - weight) * cross-entropy
  double distill_hidden = 0;    // with a teacher: weight of the hidden states' squared distance from the teacher's
  // Every batch draws its share of active heads from [min, max]; min 0: the share is the model's own throughout.
  double random_share_min = 0, random_share_max = 1;
  bool documents = false;          // attention stops where a document begins; the data must tell
  bool recompute = false;          // see models::LlamaInput
  std::int64_t loss_rows = 0;      // tokens whose logits are there at a time, computed twice; 0: of all, once
  std::int64_t valid_windows = 0;  // windows of the validation stream; 0: all
  std::string tokenizer;           // folder whose tokenizer belongs beside the saved model; "": none
  std::string companions;          // folder of the model that is tuned, whose other files do (moh/io/companions.h)
};

class LanguageTask : public Task {
 public:
  // Validation of `valid`, and of every source that has its own.
  LanguageTask(models::Llama model, data::TokenMix train, std::optional<data::TokenStream> valid,
               std::optional<models::Llama> teacher, LanguageTaskOptions options);

  const io::NamedTensors& parameters() const override { return model_.parameters(); }
  std::vector<bool> decays() const override { return model_.decays(); }
  std::string unit() const override { return "tokens"; }
  BatchLoss loss(std::int64_t position, std::int64_t count) override;
  std::optional<Validation> validate() override;
  void save_model(const std::string& folder) const override;

  const models::Llama& model() const { return model_; }

 private:
  models::LlamaOutput forward(std::int64_t position, const models::LlamaInput& input);
  // Cross-entropy and, with a teacher's hidden states, the divergence from it; means over tokens.
  struct Losses {
    at::Tensor cross_entropy, divergence;
  };
  Losses losses_of(const at::Tensor& hidden, const at::Tensor& teacher_hidden, const at::Tensor& targets) const;

  models::Llama model_;
  std::unique_ptr<const data::TokenMix> train_;
  std::optional<data::TokenStream> valid_;
  std::optional<models::Llama> teacher_;
  LanguageTaskOptions options_;
  data::MixSampler sampler_;
};

}  // namespace moh::train
