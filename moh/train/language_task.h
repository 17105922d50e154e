// Next-token training of a LLaMA, dense or MoH, on a token stream; optionally distilled from a teacher.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "moh/data/token_data.h"
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
  std::int64_t valid_windows = 0;  // windows of the validation stream; 0: all
  std::string tokenizer;           // folder whose tokenizer belongs beside the saved model; "": none
  std::string companions;          // folder of the model that is tuned, whose other files do (moh/io/companions.h)
};

class LanguageTask : public Task {
 public:
  LanguageTask(models::Llama model, data::TokenStream train, std::optional<data::TokenStream> valid,
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

  models::Llama model_;
  data::TokenStream train_;
  std::optional<data::TokenStream> valid_;
  std::optional<models::Llama> teacher_;
  LanguageTaskOptions options_;
  data::WindowSampler sampler_;
};

}  // namespace moh::train
