#include "moh/train/train_state.h"

#include <cmath>

#include "moh/base/error.h"
#include "moh/io/files.h"

namespace moh::train {

Json state_json(const TrainState& state) {
  Json json = Json::object();
  json["step"] = state.step;
  json["items"] = state.items;
  json["examples"] = state.examples;
  if (state.scale.dynamic) {
    json["loss_scale"] = {{"value", state.scale.value},
                          {"good_steps", state.scale.good_steps},
                          {"skipped_steps", state.scale.skipped_steps}};
  }
  return json;
}

void load_state(const std::string& file, std::int64_t batch, TrainState& state) {
  const Json json = parse_json(io::read_file(file, 1 << 20), file);
  MOH_CHECK(json.is_object() && json.contains("step") && json["step"].is_number_integer() && json.contains("items") &&
                json["items"].is_number_integer(),
            "[train] ", file, " is damaged: `step` or `items` is missing");
  // A run in another type until now has none: it begins with the first scale.
  if (state.scale.dynamic && json.contains("loss_scale")) {
    const Json& kept = json["loss_scale"];
    const auto number = [&](const char* key) {
      MOH_CHECK(kept.is_object() && kept.contains(key) && kept[key].is_number(), "[train] ", file,
                " is damaged: `loss_scale` has no `", key, "`");
      return kept[key].get<double>();
    };
    state.scale.value = number("value");
    MOH_CHECK(state.scale.value > 0 && std::isfinite(state.scale.value), "[train] ", file,
              " is damaged: `loss_scale` must be positive, got ", state.scale.value);
    state.scale.good_steps = static_cast<std::int64_t>(number("good_steps"));
    state.scale.skipped_steps = static_cast<std::int64_t>(number("skipped_steps"));
  }
  state.step = json["step"].get<std::int64_t>();
  state.items = json["items"].get<std::int64_t>();
  // Checkpoints that do not say it were made with one batch size all along, which they do say.
  if (json.contains("train") && json["train"].is_object()) batch = json["train"].value("batch", batch);
  state.examples = state.step * batch;
  if (json.contains("examples")) {
    MOH_CHECK(json["examples"].is_number_integer() && json["examples"].get<std::int64_t>() >= 0, "[train] ", file,
              " is damaged: `examples` must be a number");
    state.examples = json["examples"].get<std::int64_t>();
  }
}

}  // namespace moh::train
