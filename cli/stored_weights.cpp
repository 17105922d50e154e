#include "cli/stored_weights.h"

#include "moh/base/error.h"

namespace moh::cli {

void StoredWeights::add_option(CLI::App& app, const std::vector<std::string>& also, const std::string& meaning) {
  std::vector<std::string> choices = {"same", "packed", "int8", "int4"};
  choices.insert(choices.end(), also.begin(), also.end());
  app.add_option("--weights", choice,
                 "same: as they are; packed: as they are, in the order in which rows are multiplied; int8, int4: in "
                 "blocks of 32 (a GGUF file's Q8_0, Q4_0, Q4_1 are kept)" +
                     meaning)
      ->check(CLI::IsMember(choices));
}

std::int64_t StoredWeights::apply(models::Llama& model, const std::string& folder) const {
  if (choice == "same") return 0;
  MOH_CHECK(choice == "packed" || choice == "int8" || choice == "int4", "[weights] ", folder,
            " is a language model, for which --weights is same, packed, int8 or int4; got ", choice);
  MOH_CHECK(model.device().is_cpu(), "[weights] --weights ", choice, " is for the CPU; leave it or --device out");
  const auto storage = choice == "int8"   ? ops::WeightStorage::kInt8
                       : choice == "int4" ? ops::WeightStorage::kInt4
                                          : ops::WeightStorage::kSame;
  return model.pack_weights(storage, folder);
}

}  // namespace moh::cli
