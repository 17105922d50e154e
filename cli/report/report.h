// One self-contained HTML page (inline CSS and SVG, no scripts, no network) from a JSON description:
//
//   {"title", "subtitle", "facts": [{"name", "value"}], "summary": [sentence], "sections": [{"heading", "text",
//   "items": [
//     {"type": "lines", "title", "x_label", "y_label", "y_log", "series": [{"name", "x": [], "y": [], "dashed"}],
//      "reference_lines": [{"name", "y"}]}
//     {"type": "bars", "title", "x_label", "y_label", "groups": [], "series": [{"name", "values": []}],
//     "reference_lines"}
//     {"type": "table", "columns": [], "rows": [[]], "note"}
//     {"type": "heatmap", "title", "x_label", "y_label", "x": [], "y": [], "values": [[0..1 or null: shared]]}
//     {"type": "heads", "title", "x_label", "y_label", "x": [], "rows": [{"name", "shared": [true or false], "note"}],
//      "group": query heads of a KV head}
//     {"type": "text", "text"}   {"type": "code", "text"}]}]}
//
// Every part may be absent; a point that is null or not finite is left out. Errors: an item of an unknown type.
#pragma once

#include <string>

#include "moh/base/fields.h"

namespace moh {

std::string render_report(const Json& report);

}  // namespace moh
