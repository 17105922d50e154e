// moh info: what this build can do on this machine.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <fmt/format.h>
#include <torch/version.h>

#include <algorithm>
#include <sstream>

#include "cli/command.h"
#include "cli/model_kind.h"
#include "moh/kernels/backend.h"
#include "moh/models/llama_config.h"

namespace moh::cli {
namespace {

int info(const Context& context) {
  Json line = Json::object();
  line["version"] = MOH_VERSION;
  line["torch"] = TORCH_VERSION;
  line["compiler"] = __VERSION__;
  line["torch_cpu_capability"] = at::get_cpu_capability();
  line["threads"] = at::get_num_threads();
  Json backends = Json::array();
  for (const auto& backend : kernels::backends()) {
    const std::string reason = backend.unavailable_reason();
    const std::string by_name_only = backend.automatic() ? "" : backend.by_name_only;
    backends.push_back({{"name", backend.name},
                        {"available", reason.empty()},
                        {"automatic", backend.automatic()},
                        {"reason", reason.empty() ? by_name_only : reason}});
  }
  backends.push_back({{"name", "composite"},
                      {"available", true},
                      {"automatic", true},
                      {"reason", "LibTorch operations: any device and dtype, every head computed"}});
  line["backends"] = backends;
  Json operators = Json::array();
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (!name.name.starts_with("moh::")) continue;
    std::ostringstream schema;
    schema << c10::Dispatcher::singleton().findSchema(name)->schema();
    operators.push_back(schema.str());
  }
  std::sort(operators.begin(), operators.end());
  line["operators"] = operators;
  std::vector<std::string> presets = models::llama_presets();
  for (const ModelKind& kind : model_kinds()) {
    for (const std::string& preset : kind.presets()) presets.push_back(preset);
  }
  line["presets"] = presets;
  context.emit(line);
  if (context.json) return 0;

  context.say(fmt::format("moh {}  (torch {}, {} threads, torch's CPU capability {}, compiler {})", MOH_VERSION,
                          TORCH_VERSION, at::get_num_threads(), at::get_cpu_capability(), __VERSION__));
  context.say("\nattention backends, best first:");
  for (const auto& backend : backends) {
    const std::string reason = backend["reason"].get<std::string>();
    const std::string state = !backend["available"].get<bool>()   ? "unavailable: " + reason
                              : !backend["automatic"].get<bool>() ? "available, only when asked for by name: " + reason
                              : reason.empty()                    ? "available"
                                                                  : reason;
    context.say(fmt::format("  {:<12} {}", backend["name"].get<std::string>(), state));
  }
  context.say("\noperators (torch.ops.moh):");
  for (const auto& schema : operators) context.say("  " + schema.get<std::string>());
  context.say("\npresets:");
  for (const auto& preset : presets) context.say("  " + preset);
  return 0;
}

const Registered registered{{"info", "build, backends with the reason each is unavailable, operators, presets",
                             [](CLI::App&, Context& context) -> Run { return [&context] { return info(context); }; }}};

}  // namespace
}  // namespace moh::cli
