#include "cli/report/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace moh::svg {
namespace {

constexpr double kWidth = 640, kHeight = 300, kLeft = 66, kRight = 26, kTop = 12, kBottom = 34;
constexpr std::size_t kMaxPoints = 800;  // of a drawn line; longer ones are thinned
constexpr std::size_t kMaxDots = 60;     // a line of at most so many points shows them, each with its value on hover
constexpr std::size_t kColours = 6;
constexpr const char* kNoData = "<p class=\"note\">(no data)</p>";

double value_or_nan(const Json& value) {
  return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

Json list(const Json& object, const char* key) {
  if (!object.is_object()) return Json::array();
  const auto found = object.find(key);
  return found != object.end() && found->is_array() ? *found : Json::array();
}

std::string text_at(const Json& object, const char* key) {
  if (!object.is_object()) return "";
  const auto found = object.find(key);
  return found == object.end() ? "" : plain(*found);
}

bool flag(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_boolean() && found->get<bool>();
}

std::string number(double value) {
  const double size = std::fabs(value);
  if (size >= 1e9) return fmt::format("{:.4g}G", value / 1e9);
  if (size >= 1e6) return fmt::format("{:.4g}M", value / 1e6);
  if (size >= 1e4) return fmt::format("{:.4g}k", value / 1e3);
  return fmt::format("{:.6g}", size < 1e-12 ? 0.0 : value);
}

// A range of values and its place on the page, linear or logarithmic.
struct Axis {
  double from, to;  // pixels of low and high
  bool is_log = false;
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();

  bool takes(double value) const { return std::isfinite(value) && (!is_log || value > 0); }
  void add(double value) {
    if (!takes(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool is_empty() const { return low > high; }

  // Leaves room at both ends; equal ends are moved apart.
  void widen(double share) {
    if (is_log) {
      const double factor = high > low ? std::pow(high / low, share) : 2;
      low /= factor;
      high *= factor;
    } else {
      const double margin = high > low ? (high - low) * share : std::max(std::fabs(high), 1.0) * 0.5;
      low -= margin;
      high += margin;
    }
  }

  double place(double value) const {
    const double share = is_log ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
    return from + share * (to - from);
  }

  // About `wanted` round numbers within the range: steps of 1, 2 or 5 times a power of ten.
  std::vector<double> ticks(int wanted) const {
    std::vector<double> found;
    if (is_log && high / low > 5) {
      const bool is_short = high / low < 200;
      for (double power = std::floor(std::log10(low)); power <= std::log10(high); ++power) {
        for (const double digit : {1.0, 2.0, 5.0}) {
          const double value = digit * std::pow(10.0, power);
          if ((digit == 1 || is_short) && value >= low && value <= high) found.push_back(value);
        }
      }
      return found;
    }
    const double raw = (high - low) / wanted, power = std::pow(10.0, std::floor(std::log10(raw))), digit = raw / power;
    const double step = power * (digit < 1.5 ? 1 : digit < 3.5 ? 2 : digit < 7.5 ? 5 : 10);
    // Counted, not summed up: a step too small to change a large number must not loop for ever.
    for (int i = 0; i < 4 * wanted; ++i) {
      const double value = (std::ceil(low / step) + i) * step;
      if (value > high) break;
      found.push_back(value);
    }
    return found;
  }
};

std::string key(const std::string& style, const std::string& name) {
  return fmt::format("<span class=\"key\"><i class=\"{}\"></i>{}</span>", style, name);
}

std::string open_svg(const Json& item, double width, double height) {
  return fmt::format("<svg viewBox=\"0 0 {:g} {:g}\" role=\"img\" aria-label=\"{}\">", width, height,
                     text_at(item, "title"));
}

// The legend and y label above a picture, the x label below it.
std::string framed(const Json& item, const std::string& legend, const std::string& picture) {
  std::string out;
  if (!legend.empty()) out += "<div class=\"legend\">" + legend + "</div>";
  if (const auto y = text_at(item, "y_label"); !y.empty()) out += "<div class=\"axis\">" + y + "</div>";
  out += picture;
  if (const auto x = text_at(item, "x_label"); !x.empty()) out += "<div class=\"axis x\">" + x + "</div>";
  return out;
}

std::string horizontal_grid(const Axis& y) {
  std::string out;
  for (const double value : y.ticks(5)) {
    out += fmt::format(
        "<line class=\"grid\" x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>"
        "<text class=\"tick end\" x=\"{3}\" y=\"{4:.1f}\">{5}</text>",
        kLeft, kWidth - kRight, y.place(value), kLeft - 8, y.place(value) + 4, number(value));
  }
  return out;
}

// Dashed lines across the plot; adds their names to the legend.
std::string reference_lines(const Json& item, const Axis& y, std::string& legend) {
  std::string out;
  for (const Json& line : list(item, "reference_lines")) {
    const double value = line.is_object() ? value_or_nan(line.value("y", Json())) : value_or_nan(Json());
    if (!y.takes(value)) continue;
    const std::string name = text_at(line, "name");
    out += fmt::format(
        "<line class=\"reference\" x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"><title>{3}: {4}"
        "</title></line>",
        kLeft, kWidth - kRight, y.place(value), name, number(value));
    legend += key("dotted", fmt::format("{} ({})", name, number(value)));
  }
  return out;
}

void add_reference_lines(const Json& item, Axis& y) {
  for (const Json& line : list(item, "reference_lines")) {
    if (line.is_object()) y.add(value_or_nan(line.value("y", Json())));
  }
}

std::string line(const Json& series, std::size_t colour, bool dashed, const Axis& x, const Axis& y) {
  const Json xs = list(series, "x"), ys = list(series, "y");
  const std::size_t count = std::min(xs.size(), ys.size()), stride = (count + kMaxPoints - 1) / kMaxPoints;
  const std::string name = text_at(series, "name");
  std::string points, dots;
  for (std::size_t i = 0; i < count;
       i = i + 1 == count ? count : std::min(i + stride, count - 1)) {  // the last one too
    const double at_x = value_or_nan(xs[i]), at_y = value_or_nan(ys[i]);
    if (!x.takes(at_x) || !y.takes(at_y)) continue;
    points += fmt::format("{:.1f},{:.1f} ", x.place(at_x), y.place(at_y));
    if (count > kMaxDots) continue;
    dots +=
        fmt::format("<circle class=\"f{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\"><title>{}: {} at {}</title></circle>",
                    colour, x.place(at_x), y.place(at_y), name, number(at_y), number(at_x));
  }
  if (points.empty()) return "";
  return fmt::format("<polyline class=\"c{}{}\" points=\"{}\"><title>{}</title></polyline>", colour,
                     dashed ? " dashed" : "", points, name) +
         dots;
}

}  // namespace

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string plain(const Json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return escape(value.get<std::string>());
  if (value.is_number_float()) return fmt::format("{:.6g}", value.get<double>());
  return escape(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

std::string line_plot(const Json& item) {
  Axis x{kLeft, kWidth - kRight}, y{kHeight - kBottom, kTop, flag(item, "y_log")};
  const Json series = list(item, "series");
  for (const Json& one : series) {
    for (const Json& value : list(one, "x")) x.add(value_or_nan(value));
    for (const Json& value : list(one, "y")) y.add(value_or_nan(value));
  }
  add_reference_lines(item, y);
  if (x.is_empty() || y.is_empty()) return kNoData;
  if (x.low == x.high) x.widen(0);
  y.widen(0.05);
  std::string legend, picture = open_svg(item, kWidth, kHeight) + horizontal_grid(y);
  for (const double value : x.ticks(6)) {
    picture += fmt::format("<text class=\"tick middle\" x=\"{:.1f}\" y=\"{}\">{}</text>", x.place(value),
                           kHeight - kBottom + 22, number(value));
  }
  std::string lines;
  for (std::size_t i = 0; i < series.size(); ++i) {
    const std::size_t colour = i % kColours;
    const bool dashed = flag(series[i], "dashed") || i >= kColours;  // colours come again after the last one
    const std::string drawn = line(series[i], colour, dashed, x, y);
    if (drawn.empty()) continue;
    lines += drawn;
    legend += key(fmt::format("f{}{}", colour, dashed ? " dash" : ""), text_at(series[i], "name"));
  }
  picture += reference_lines(item, y, legend) + lines;
  return framed(item, legend, picture + "</svg>");
}

std::string bar_plot(const Json& item) {
  Axis y{kHeight - kBottom, kTop};
  const Json series = list(item, "series"), groups = list(item, "groups");
  std::size_t count = 0;
  for (const Json& one : series) {
    const Json values = list(one, "values");
    count = std::max(count, values.size());
    for (const Json& value : values) y.add(value_or_nan(value));
  }
  if (y.is_empty()) return kNoData;
  y.add(0);
  add_reference_lines(item, y);
  (y.high > 0 ? y.high : y.low) *= 1.05;
  if (y.low == y.high) y.high = 1;
  const double group_width = (kWidth - kLeft - kRight) / static_cast<double>(count);
  const double bar = std::min(48.0, group_width * 0.8 / static_cast<double>(series.size()));
  std::string legend, picture = open_svg(item, kWidth, kHeight) + horizontal_grid(y);
  for (std::size_t s = 0; s < series.size(); ++s) {
    const Json values = list(series[s], "values");
    const std::string name = text_at(series[s], "name");
    for (std::size_t g = 0; g < values.size(); ++g) {
      const double value = value_or_nan(values[g]);
      if (!std::isfinite(value)) continue;
      const double middle = kLeft + group_width * (static_cast<double>(g) + 0.5);
      const double left = middle + bar * (static_cast<double>(s) - static_cast<double>(series.size()) / 2);
      const double top = std::min(y.place(value), y.place(0)), height = std::fabs(y.place(value) - y.place(0));
      picture += fmt::format(
          "<rect class=\"f{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"2\">"
          "<title>{}, {}: {}</title></rect>",
          s % kColours, left + 1, top, std::max(bar - 2, 1.0), height, name, g < groups.size() ? plain(groups[g]) : "",
          number(value));
    }
    legend += key(fmt::format("f{}", s % kColours), name);
  }
  for (std::size_t g = 0; g < std::min(groups.size(), count); ++g) {
    picture +=
        fmt::format("<text class=\"tick middle\" x=\"{:.1f}\" y=\"{}\">{}</text>",
                    kLeft + group_width * (static_cast<double>(g) + 0.5), kHeight - kBottom + 22, plain(groups[g]));
  }
  picture += reference_lines(item, y, legend);
  return framed(item, legend, picture + "</svg>");
}

std::string heatmap(const Json& item) {
  const Json rows = list(item, "values"), x_names = list(item, "x"), y_names = list(item, "y");
  std::size_t columns = 0;
  for (const Json& row : rows) columns = std::max(columns, row.is_array() ? row.size() : 0);
  if (columns == 0) return kNoData;
  const double row_height = 28, cell = std::min(56.0, (kWidth - kLeft - kRight) / static_cast<double>(columns));
  const double below = kTop + row_height * static_cast<double>(rows.size());
  bool any_shared = false;
  // The hatching of shared heads; one pattern for each picture, all alike, so that equal ids do no harm.
  std::string picture = open_svg(item, kWidth, below + kBottom) +
                        "<defs><pattern id=\"hatch\" width=\"7\" height=\"7\" patternUnits=\"userSpaceOnUse\" "
                        "patternTransform=\"rotate(45)\"><rect class=\"shared\" width=\"7\" height=\"7\"/>"
                        "<line class=\"stripe\" x1=\"0\" x2=\"0\" y1=\"0\" y2=\"7\"/></pattern></defs>";
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (!rows[r].is_array()) continue;
    const double y = kTop + row_height * static_cast<double>(r);
    const std::string row_name = r < y_names.size() ? plain(y_names[r]) : "";
    picture += fmt::format("<text class=\"tick end\" x=\"{}\" y=\"{:.1f}\">{}</text>", kLeft - 8, y + 19, row_name);
    for (std::size_t c = 0; c < rows[r].size(); ++c) {
      const double x = kLeft + cell * static_cast<double>(c), value = value_or_nan(rows[r][c]);
      const bool is_shared = !std::isfinite(value);
      const double shade = is_shared ? 1 : 0.06 + 0.94 * std::clamp(value, 0.0, 1.0);
      any_shared |= is_shared;
      picture += fmt::format(
          "<rect {} x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{}\" rx=\"2\" "
          "fill-opacity=\"{:.3f}\"><title>{} {}, {} {}: {}</title></rect>",
          is_shared ? "fill=\"url(#hatch)\"" : "class=\"f0\"", x + 1, y + 1, cell - 2, row_height - 2, shade,
          text_at(item, "y_label"), row_name, text_at(item, "x_label"), c < x_names.size() ? plain(x_names[c]) : "",
          is_shared ? "shared, every token" : fmt::format("{:.1f} % of the tokens", 100 * value));
      if (!is_shared && cell >= 26) {
        picture += fmt::format("<text class=\"in{}\" x=\"{:.1f}\" y=\"{:.1f}\">{:.0f}</text>", shade > 0.6 ? " on" : "",
                               x + cell / 2, y + 19, 100 * value);
      }
    }
  }
  const auto label_step = static_cast<std::size_t>(std::ceil(36 / cell));  // labels that do not touch, on a phone too
  for (std::size_t c = 0; c < std::min(x_names.size(), columns); c += label_step) {
    picture += fmt::format("<text class=\"tick middle\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>",
                           kLeft + cell * (static_cast<double>(c) + 0.5), below + 22, plain(x_names[c]));
  }
  std::string legend = key("ramp", "share of the tokens, 0 to 100 %");
  if (any_shared) legend += key("shared_key", "shared: every token");
  return framed(item, legend, picture + "</svg>");
}

}  // namespace moh::svg
