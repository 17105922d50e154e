// The register of routers and what configurations say of them: known without torch.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moh/base/fields.h"

namespace at {
class Tensor;
}

namespace moh::layers {

// Gates of a trained router, and scale of the load-balance loss: as the paper has them, or as the authors' code.
enum class GateForm { kPaper, kAuthors };
// Which of the query-norm router's scores get a gradient.
enum class StraightThrough { kSelected, kAll, kNone };
// What a router takes or leaves: single heads, or all query heads of one KV head together.
enum class SelectBy { kHead, kKvGroup };

// Their names in config.json.
const char* name_of(GateForm);
const char* name_of(StraightThrough);
const char* name_of(SelectBy);
// Sets `value` by its name. Error "[where] `key` must be one of ...".
void parse_name(const std::string& name, GateForm& value, const std::string& where, const char* key);
void parse_name(const std::string& name, StraightThrough& value, const std::string& where, const char* key);
void parse_name(const std::string& name, SelectBy& value, const std::string& where, const char* key);

class Router;
struct RouterSetting;
// Finds a tensor of a layer by its name beside the layer's projections.
using RouterTensors = std::function<std::optional<at::Tensor>(const std::string& name)>;

// A tensor that a layer of this kind has, by its name beside the layer's projections: "wg.weight" [E, C].
struct RouterTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  bool decays = true;
};
struct RouterType {
  const char* name;                    // as config.json has it
  const char* summary;                 // one line of help
  bool needs_query;                    // see Router::needs_query
  std::vector<std::string> keys = {};  // of the object `moh` that are its own, see RouterSetting::own
  std::vector<RouterTensor> (*tensors)(const RouterSetting&);
  std::unique_ptr<Router> (*make)(const RouterTensors&);
  // Error "[where] ..." for keys of its own that a model of so many layers cannot have.
  void (*check)(const Json& own, std::int64_t layers, const std::string& where) = nullptr;
};
struct RegisterRouter {
  explicit RegisterRouter(const RouterType& type);
};

// One of the registered routers.
class RouterKind {
 public:
  RouterKind(std::string_view name);  // NOLINT(google-explicit-constructor): Error that lists the known ones
  RouterKind(const char* name) : RouterKind(std::string_view(name)) {}         // NOLINT
  RouterKind(const std::string& name) : RouterKind(std::string_view(name)) {}  // NOLINT
  const RouterType* operator->() const { return type_; }
  const char* name() const;
  friend bool operator==(RouterKind a, RouterKind b) { return a.type_ == b.type_; }

 private:
  const RouterType* type_;
};
std::vector<std::string> router_names();
bool is_router(std::string_view name);

}  // namespace moh::layers
