#include "moh/layers/routers/router.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <deque>

#include "moh/base/error.h"

namespace moh::layers {
namespace {

using at::Tensor;

std::deque<RouterType>& registry() {  // its rows never move
  static std::deque<RouterType> types;
  return types;
}

std::string listed(const std::vector<std::string>& names) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
  return list;
}

template <class E>
struct Names;
template <>
struct Names<GateForm> {
  static constexpr std::array all = {"paper", "authors"};
};
template <>
struct Names<StraightThrough> {
  static constexpr std::array all = {"selected", "all", "none"};
};
template <>
struct Names<SelectBy> {
  static constexpr std::array all = {"head", "kv-group"};
};

template <class E>
void parse(const std::string& name, E& value, const std::string& where, const char* key) {
  const auto& names = Names<E>::all;
  const auto found = std::find(names.begin(), names.end(), name);
  MOH_CHECK(found != names.end(), "[", where, "] `", key, "` must be one of ", listed({names.begin(), names.end()}),
            "; got `", name, "`");
  value = static_cast<E>(found - names.begin());
}

}  // namespace

const char* name_of(GateForm value) { return Names<GateForm>::all[static_cast<std::size_t>(value)]; }
const char* name_of(StraightThrough value) { return Names<StraightThrough>::all[static_cast<std::size_t>(value)]; }
const char* name_of(SelectBy value) { return Names<SelectBy>::all[static_cast<std::size_t>(value)]; }
void parse_name(const std::string& name, GateForm& value, const std::string& where, const char* key) {
  parse(name, value, where, key);
}
void parse_name(const std::string& name, StraightThrough& value, const std::string& where, const char* key) {
  parse(name, value, where, key);
}
void parse_name(const std::string& name, SelectBy& value, const std::string& where, const char* key) {
  parse(name, value, where, key);
}

RegisterRouter::RegisterRouter(const RouterType& type) { registry().push_back(type); }

std::vector<std::string> router_names() {
  std::vector<std::string> names;
  for (const RouterType& type : registry()) names.emplace_back(type.name);
  std::sort(names.begin(), names.end());  // files register in any order
  return names;
}

bool is_router(std::string_view name) {
  const auto names = router_names();
  return std::find(names.begin(), names.end(), name) != names.end();
}

RouterKind::RouterKind(std::string_view name) : type_(nullptr) {
  for (const RouterType& type : registry()) {
    if (name == type.name) type_ = &type;
  }
  MOH_CHECK(type_ != nullptr, "[router] unknown router `", name, "`; known: ", listed(router_names()));
}

const char* RouterKind::name() const { return type_->name; }

std::unique_ptr<Router> make_router(RouterKind kind, const RouterTensors& tensors) {
  std::unique_ptr<Router> router = kind->make(tensors);
  router->type_ = kind.operator->();
  return router;
}

std::vector<RouterTensor> router_tensors_by_name(RouterKind kind, const RouterSetting& setting) {
  std::vector<RouterTensor> tensors = kind->tensors(setting);
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return tensors;
}

bool Router::needs_query() const { return type_->needs_query; }

ops::Routing Router::route(const RouterSetting& setting, const Tensor& x, const Tensor& query) const {
  Tensor scored = query;
  if (query.defined() && setting.group > 1) {
    scored = query.reshape({query.size(0), query.size(1), setting.choices, -1});
  }
  if (query.defined() && setting.order != nullptr) scored = scored.index_select(2, setting.order->order);
  ops::Routing routing = decide(setting, x, scored);
  if (setting.order != nullptr) routing.gates = routing.gates.index_select(-1, setting.order->place);
  if (setting.group > 1) {
    auto sizes = routing.gates.sizes().vec();
    sizes.back() = setting.choices * setting.group;
    routing.gates = routing.gates.unsqueeze(-1).expand({-1, -1, -1, setting.group}).reshape(sizes);
  }
  return routing;
}

double Router::share(const RouterSetting& setting) const {
  return static_cast<double>(setting.shared + setting.top_k) / static_cast<double>(setting.choices);
}

Tensor Router::balance_loss(const RouterSetting& setting, const ops::Routing& routing) const {
  if (setting.top_k == 0) return {};
  return ops::load_balance_loss(routing.probabilities, routing.indices, name_of(setting.balance));
}

}  // namespace moh::layers
