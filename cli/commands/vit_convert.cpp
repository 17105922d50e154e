#include <fmt/format.h>

#include <filesystem>

#include "cli/commands/vit_commands.h"
#include "cli/progress.h"
#include "moh/models/vit_checkpoint.h"

namespace moh::cli {

int convert_vit(const Context& context, const ModelKind::Conversion& conversion) {
  const std::string& out = conversion.out;
  MOH_CHECK(!is_vit_folder(conversion.in), "[convert] ", conversion.in,
            " is a model folder already; `moh eval` takes it as it is");
  MOH_CHECK(!std::filesystem::exists(out + "/model.safetensors"), "[convert] ", out,
            " holds a model already; choose another folder");
  const models::Vit model = models::load_vit_checkpoint(conversion.in, conversion.preset, conversion.weights);
  model.save(out);
  const models::VitConfig& config = model.config();
  Json layers = Json::array();
  for (std::size_t i = 0; i < config.embed_dims.size(); ++i) {
    for (std::int64_t block = 0; block < config.depths[i]; ++block) {
      layers.push_back(
          {{"heads", config.num_heads[i]}, {"shared_heads", config.shared_heads(i)}, {"top_k", config.top_k(i)}});
    }
  }
  Json line = Json::object();
  line["parameters"] = model.num_parameters();
  line["activated"] = config.activated_share();
  line["layers"] = layers;
  context.emit(line);
  context.say(fmt::format("wrote {}: {} parameters, {:.1f} % of the heads active, {} classes", out,
                          with_commas(model.num_parameters()), 100 * config.activated_share(), config.num_classes));
  return 0;
}

}  // namespace moh::cli
