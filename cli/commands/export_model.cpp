#include "cli/commands/export_model.h"

#include <fmt/format.h>

#include <filesystem>

#include "moh/io/companions.h"
#include "moh/models/llama_export.h"

namespace moh::cli {

int export_model(const Context& context, const std::string& in, const std::string& out) {
  MOH_CHECK(!std::filesystem::exists(out + "/config.json"), "[convert] ", out,
            " holds a model already; choose another folder");
  const auto model = models::Llama::load(in, context.weights_type(), models::read_as(context.read_as));
  io::check_finite(model.parameters(), in);
  models::export_llama(model, out);
  io::copy_model_files(in, out);
  const bool is_moh = model.config().moh.has_value();
  context.emit({{"parameters", model.num_parameters()},
                {"activated", model.config().activated_share()},
                {"layers", model.config().num_hidden_layers},
                {"export", "hf"}});
  context.say(fmt::format("wrote {}: load it with AutoModelForCausalLM.from_pretrained(\"{}\"{})", out, out,
                          is_moh ? ", trust_remote_code=True" : ""));
  return 0;
}

}  // namespace moh::cli
