// Which heads of a model's layers every token uses and which are routed: a table for the terminal, a picture for
// reports.
#pragma once

#include <string>
#include <vector>

#include "cli/command.h"

namespace moh::cli {

struct LayerHeads {
  std::string name;          // the layer's number
  std::vector<bool> shared;  // of each query head; the others are routed
  std::string selected;      // how many of the routed ones a token uses
  std::vector<double> load;  // measured share of the tokens that use each head; may be empty

  bool operator==(const LayerHeads&) const = default;
};

// A line a layer under a header; `layers`: what they are called. Layers that are alike share a line.
void say_layer_heads(const Context& context, const char* layers, const std::vector<LayerHeads>& heads);

// An item of a report (cli/report/report.h). `group`: query heads of a KV head.
Json layer_heads_picture(const char* layer, std::int64_t group, const std::vector<LayerHeads>& heads);

}  // namespace moh::cli
