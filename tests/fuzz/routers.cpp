// The routers as far as a config knows them, without the layers, which need torch.
#include "moh/layers/routers/linear_keys.h"
#include "moh/layers/routers/router_kind.h"

namespace {

using moh::layers::RegisterRouter;

const RegisterRouter two_stage({.name = "two-stage", .summary = "", .needs_query = false});
const RegisterRouter norm({.name = "norm", .summary = "", .needs_query = true});
const RegisterRouter linear({.name = "linear",
                             .summary = "",
                             .needs_query = false,
                             .keys = moh::layers::linear_router_keys(),
                             .check = moh::layers::check_linear_router_keys});

}  // namespace
