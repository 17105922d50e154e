#include "moh/layers/routers/router_kind.h"

#include <algorithm>
#include <array>
#include <deque>

#include "moh/base/error.h"

namespace moh::layers {
namespace {

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

}  // namespace moh::layers
