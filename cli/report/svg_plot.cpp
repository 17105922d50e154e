#include "cli/report/svg_plot.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

namespace moh::svg {
namespace {

constexpr double kWidth = 720, kHeight = 330, kLeft = 64, kRight = 150, kTop = 14, kBottom = 46;
constexpr std::size_t kMaxPoints = 800;  // of a drawn line; longer ones are thinned

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void add(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool is_empty() const { return low > high; }
};

// A step of 1, 2 or 5 times a power of ten that cuts the range into about `wanted` pieces.
double nice_step(double span, int wanted) {
  const double raw = span / wanted, power = std::pow(10.0, std::floor(std::log10(raw)));
  const double digit = raw / power;
  return power * (digit < 1.5 ? 1 : digit < 3.5 ? 2 : digit < 7.5 ? 5 : 10);
}

std::string number(double value) {
  if (std::fabs(value) >= 1e6) return fmt::format("{:g}M", value / 1e6);
  if (std::fabs(value) >= 1e4) return fmt::format("{:g}k", value / 1e3);
  return fmt::format("{:g}", std::fabs(value) < 1e-12 ? 0.0 : value);
}

double value_or_nan(const Json& value) {
  return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

Json list(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_array() ? *found : Json::array();
}

struct Label {
  double y;
  std::string text, style;
};

// Labels at the right edge, moved apart so that none covers another.
std::string right_labels(std::vector<Label> labels) {
  std::stable_sort(labels.begin(), labels.end(), [](const Label& a, const Label& b) { return a.y < b.y; });
  std::string out;
  double last = -1e9;
  for (const Label& label : labels) {
    const double y = std::max(label.y, last + 15);
    last = y;
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"label {}\">{}</text>", kWidth - kRight + 8, y + 4,
                       label.style, escape(label.text));
  }
  return out;
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

std::string line_plot(const Json& item) {
  Range x_range, y_range;
  const Json series = list(item, "series"), references = list(item, "reference_lines");
  for (const Json& one : series) {
    for (const Json& x : list(one, "x")) x_range.add(value_or_nan(x));
    for (const Json& y : list(one, "y")) y_range.add(value_or_nan(y));
  }
  for (const Json& line : references) y_range.add(value_or_nan(line.value("y", Json())));
  if (x_range.is_empty() || y_range.is_empty()) return "<p class=\"note\">(no data)</p>";
  if (x_range.high == x_range.low) x_range.high += 1;
  const double margin = std::max((y_range.high - y_range.low) * 0.05, 1e-9 + std::fabs(y_range.high) * 1e-3);
  y_range.low -= margin;
  y_range.high += margin;
  const auto place_x = [&](double x) {
    return kLeft + (x - x_range.low) / (x_range.high - x_range.low) * (kWidth - kLeft - kRight);
  };
  const auto place_y = [&](double y) {
    return kHeight - kBottom - (y - y_range.low) / (y_range.high - y_range.low) * (kHeight - kTop - kBottom);
  };
  std::string out = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">", kWidth, kHeight,
                                escape(item.value("title", "plot")));
  const double y_step = nice_step(y_range.high - y_range.low, 5), x_step = nice_step(x_range.high - x_range.low, 6);
  for (double y = std::ceil(y_range.low / y_step) * y_step; y <= y_range.high; y += y_step) {
    out += fmt::format(
        "<line class=\"grid\" x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>"
        "<text class=\"tick end\" x=\"{3}\" y=\"{4:.1f}\">{5}</text>",
        kLeft, kWidth - kRight, place_y(y), kLeft - 8, place_y(y) + 4, number(y));
  }
  for (double x = std::ceil(x_range.low / x_step) * x_step; x <= x_range.high; x += x_step) {
    out += fmt::format("<text class=\"tick middle\" x=\"{:.1f}\" y=\"{}\">{}</text>", place_x(x),
                       kHeight - kBottom + 18, number(x));
  }
  std::vector<Label> labels;
  for (const Json& line : references) {
    const double y = value_or_nan(line.value("y", Json()));
    if (!std::isfinite(y)) continue;
    out += fmt::format("<line class=\"reference\" x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>", kLeft,
                       kWidth - kRight, place_y(y));
    labels.push_back({place_y(y), line.value("name", ""), "quiet"});
  }
  int colour = 0;
  for (const Json& one : series) {
    const Json xs = list(one, "x"), ys = list(one, "y");
    const std::size_t count = std::min(xs.size(), ys.size()), stride = count / kMaxPoints + 1;
    std::string points;
    double last_y = 0;
    for (std::size_t i = 0; i < count; i += stride) {
      const double x = value_or_nan(xs[i]), y = value_or_nan(ys[i]);
      if (!std::isfinite(x) || !std::isfinite(y)) continue;
      last_y = place_y(y);
      points += fmt::format("{:.1f},{:.1f} ", place_x(x), last_y);
    }
    if (points.empty()) continue;
    const std::string name = one.value("name", "");
    out += fmt::format("<polyline class=\"c{}{}\" points=\"{}\"><title>{}</title></polyline>", colour % 6,
                       one.value("dashed", false) ? " dashed" : "", points, escape(name));
    labels.push_back({last_y, name, fmt::format("t{}", colour % 6)});
    ++colour;
  }
  out += right_labels(std::move(labels));
  out += fmt::format("<text class=\"axis middle\" x=\"{}\" y=\"{}\">{}</text>", (kLeft + kWidth - kRight) / 2,
                     kHeight - 6, escape(item.value("x_label", "")));
  out += fmt::format("<text class=\"axis middle\" transform=\"translate(14 {}) rotate(-90)\">{}</text></svg>",
                     (kTop + kHeight - kBottom) / 2, escape(item.value("y_label", "")));
  return out;
}

std::string heatmap(const Json& item) {
  const Json rows = list(item, "values"), x_names = list(item, "x"), y_names = list(item, "y");
  std::size_t columns = 0;
  for (const Json& row : rows) columns = std::max(columns, row.size());
  if (columns == 0) return "<p class=\"note\">(no data)</p>";
  const double cell = std::min(44.0, (kWidth - kLeft - 20) / static_cast<double>(columns)), row_height = 26;
  const double height = kTop + row_height * static_cast<double>(rows.size()) + 44;
  std::string out = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">", kWidth, height,
                                escape(item.value("title", "heatmap")));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const double y = kTop + row_height * static_cast<double>(r);
    if (r < y_names.size()) {
      out += fmt::format("<text class=\"tick end\" x=\"{}\" y=\"{:.1f}\">{}</text>", kLeft - 8, y + 17,
                         escape(y_names[r].is_string() ? y_names[r].get<std::string>() : y_names[r].dump()));
    }
    for (std::size_t c = 0; c < rows[r].size(); ++c) {
      const double x = kLeft + cell * static_cast<double>(c), value = value_or_nan(rows[r][c]);
      const bool shared = !std::isfinite(value);
      out += fmt::format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{}\" class=\"{}\" style=\"fill-opacity:{:.3f}\">"
          "<title>{}</title></rect>",
          x + 1, y + 1, cell - 2, row_height - 2, shared ? "shared" : "cell", shared ? 1.0 : 0.06 + 0.94 * value,
          shared ? "shared: every token" : fmt::format("{:.1f} % of the tokens", 100 * value));
      if (cell >= 26) {
        out += fmt::format("<text class=\"in {}\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>",
                           !shared && value > 0.55 ? "on" : "", x + cell / 2, y + 17,
                           shared ? "all" : fmt::format("{:.0f}", 100 * value));
      }
    }
  }
  const double below = kTop + row_height * static_cast<double>(rows.size());
  for (std::size_t c = 0; c < x_names.size() && c < columns; ++c) {
    out += fmt::format("<text class=\"tick middle\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>",
                       kLeft + cell * (static_cast<double>(c) + 0.5), below + 16,
                       escape(x_names[c].is_string() ? x_names[c].get<std::string>() : x_names[c].dump()));
  }
  out += fmt::format(
      "<text class=\"axis\" x=\"{}\" y=\"{:.1f}\">{}; numbers are % of the tokens, \"all\" is a shared head</text></svg>",
      kLeft, below + 36, escape(item.value("x_label", "")));
  return out;
}

}  // namespace moh::svg
