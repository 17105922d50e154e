#include "cli/layer_heads.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/progress.h"

namespace moh::cli {
namespace {

constexpr std::size_t kShareWidth = 4;

// Neighbours that are alike under one name, "0-5".
std::vector<LayerHeads> merged(std::vector<LayerHeads> heads) {
  std::vector<LayerHeads> out;
  std::string first;
  for (LayerHeads& layer : heads) {
    LayerHeads named = out.empty() ? LayerHeads() : out.back();
    named.name = layer.name;
    if (!out.empty() && named == layer) {
      out.back().name = first + "-" + layer.name;
    } else {
      first = layer.name;
      out.push_back(std::move(layer));
    }
  }
  return out;
}

std::int64_t count_shared(const LayerHeads& layer) {
  return std::count(layer.shared.begin(), layer.shared.end(), true);
}

std::int64_t count_routed(const LayerHeads& layer) {
  return static_cast<std::int64_t>(layer.shared.size()) - count_shared(layer);
}

// Behind `indent` columns, broken where the terminal ends.
std::string shares(const std::vector<double>& load, std::size_t indent) {
  const auto width = static_cast<std::size_t>(output_width().value_or(1 << 20));
  std::string text;
  std::size_t column = indent;
  for (const double share : load) {
    if (column + kShareWidth >= width && column > indent) {
      text += "\n" + std::string(indent, ' ');
      column = indent;
    }
    text += fmt::format("{:{}.0f}", 100 * share, kShareWidth);
    column += kShareWidth;
  }
  return text;
}

}  // namespace

void say_layer_heads(const Context& context, const char* layers, const std::vector<LayerHeads>& heads) {
  const bool has_load = std::any_of(heads.begin(), heads.end(), [](const LayerHeads& l) { return !l.load.empty(); });
  context.say(fmt::format("\n{:<9} {:>6} {:>8} {:>9}{}", layers, "shared", "selected", "of routed",
                          has_load ? "   load of each head, % of the tokens" : ""));
  for (const LayerHeads& layer : merged(heads)) {
    const std::string text = fmt::format("{:<9} {:>6} {:>8} {:>9}", layer.name, count_shared(layer),
                                         count_routed(layer) > 0 ? layer.selected : "0", count_routed(layer));
    context.say(text + (layer.load.empty() ? "" : "  " + shares(layer.load, text.size() + 2)));
  }
}

Json layer_heads_picture(const char* layer_word, std::int64_t group, const std::vector<LayerHeads>& heads) {
  Json rows = Json::array(), columns = Json::array();
  std::size_t most = 0;
  std::vector<LayerHeads> plain = heads;
  for (LayerHeads& layer : plain) layer.load.clear();
  for (const LayerHeads& layer : merged(std::move(plain))) {
    const std::string note = count_routed(layer) == 0 ? fmt::format("{}, all shared", count_shared(layer))
                                                      : fmt::format("{} + {} of {}", count_shared(layer),
                                                                    layer.selected, count_routed(layer));
    rows.push_back({{"name", layer.name}, {"shared", layer.shared}, {"note", note}});
    most = std::max(most, layer.shared.size());
  }
  for (std::size_t head = 0; head < most; ++head) columns.push_back(std::to_string(head));
  return {{"type", "heads"},   {"title", "Shared heads + heads that a token selects of the routed ones"},
          {"x_label", "head"}, {"y_label", layer_word},
          {"x", columns},      {"rows", rows},
          {"group", group}};
}

}  // namespace moh::cli
