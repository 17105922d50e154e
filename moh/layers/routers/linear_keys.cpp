#include "moh/layers/routers/linear_keys.h"

#include <algorithm>
#include <limits>

#include "moh/base/error.h"

namespace moh::layers {
namespace {

bool is_falling_table(const Json& table) {
  if (!table.is_array() || table.size() < 2) return false;
  if (!std::all_of(table.begin(), table.end(), [](const Json& value) { return value.is_number(); })) return false;
  return std::is_sorted(table.rbegin(), table.rend());
}

}  // namespace

std::vector<std::string> linear_router_keys() {
  return {"choose", "activated", "thresholds", "weighted", "mean_heads", "leading_tokens"};
}

void check_linear_router_keys(const Json& own, std::int64_t layers, const std::string& where) {
  for (const char* key : {"weighted", "mean_heads"}) {
    MOH_CHECK(!own.contains(key) || own.at(key).is_boolean(), "[", where, "] `moh.", key, "` must be true or false");
  }
  const auto leading = own.find("leading_tokens");
  MOH_CHECK(leading == own.end() || (leading->is_number_integer() && *leading >= 0 && *leading <= 1 << 20), "[", where,
            "] `moh.leading_tokens` must be an integer from 0 to ", 1 << 20);
  const std::string choose =
      own.contains("choose") && own["choose"].is_string() ? own["choose"].get<std::string>() : "";
  MOH_CHECK(!own.contains("choose") || choose == "top-k" || choose == "threshold", "[", where,
            "] `moh.choose` must be top-k or threshold");
  if (choose != "threshold") {
    MOH_CHECK(!own.contains("activated") && !own.contains("thresholds"), "[", where,
              "] `moh.activated` and `moh.thresholds` belong to `moh.choose` threshold");
    return;
  }
  const double activated =
      own.contains("activated") && own["activated"].is_number() ? own["activated"].get<double>() : 0;
  MOH_CHECK(activated > 0 && activated <= 1, "[", where, "] `moh.activated` must be a number in (0, 1]");
  const bool per_layer = own.contains("thresholds") && own["thresholds"].is_array() &&
                         static_cast<std::int64_t>(own["thresholds"].size()) == layers;
  MOH_CHECK(per_layer && std::all_of(own["thresholds"].begin(), own["thresholds"].end(), is_falling_table), "[", where,
            "] `moh.thresholds` must be, for each of the ", layers,
            " layers, a list of at least two numbers that fall");
}

bool by_threshold(const Json& own) {
  const auto choose = own.find("choose");
  return choose != own.end() && *choose == "threshold";
}

std::int64_t leading_tokens(const Json& own) { return own.value("leading_tokens", std::int64_t{0}); }

double layer_threshold(const Json& own, std::int64_t layer) {
  const double activated = own.at("activated").get<double>();
  if (activated >= 1) return -std::numeric_limits<double>::infinity();
  const Json& table = own.at("thresholds").at(layer);
  const double place = activated * static_cast<double>(table.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const double way = place - static_cast<double>(below);
  return (1 - way) * table[below].get<double>() + way * table[below + 1].get<double>();
}

}  // namespace moh::layers
