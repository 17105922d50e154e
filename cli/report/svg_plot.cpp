#include "cli/report/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace moh::svg {
namespace {

// Every picture is drawn twice, for wide and for narrow pages, so that its text has the page's size on both; a media
// query shows one of them.
struct Page {
  const char* name;
  double width, height;
  int x_ticks;
};
constexpr Page kPages[] = {{"wide", 640, 300, 6}, {"narrow", 348, 230, 4}};
constexpr double kRight = 26, kTop = 12, kBottom = 34;
constexpr double kCharacter = 7.6;  // width of a digit or a usual letter of a tick, and a little more
constexpr int kReferenceStyles = 3;
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

std::size_t code_points(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

double text_width(const std::string& text) { return kCharacter * static_cast<double>(code_points(text)); }

// Cut to `width` pixels, with an ellipsis. For text that is not escaped yet.
std::string fitting(const std::string& text, double width) {
  if (text_width(text) <= width + 0.5) return text;  // half a pixel for rounding
  const auto most = static_cast<std::size_t>(std::max(1.0, width / kCharacter));
  std::size_t end = 0;
  for (std::size_t seen = 0; end < text.size(); ++end) {
    if ((text[end] & 0xC0) != 0x80 && ++seen == most) break;
  }
  return text.substr(0, end) + "…";
}

std::string raw_text(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.is_null() ? "" : value.dump();
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

std::string open_svg(const Json& item, const Page& page, double height) {
  return fmt::format("<svg class=\"{}\" viewBox=\"0 0 {:g} {:g}\" role=\"img\" aria-label=\"{}\">", page.name,
                     page.width, height, text_at(item, "title"));
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

// Room for the labels of the y axis.
double left_of(const Axis& y) {
  double widest = 30;
  for (const double value : y.ticks(5)) widest = std::max(widest, text_width(number(value)));
  return widest + 14;
}

std::string horizontal_grid(const Axis& x, const Axis& y) {
  std::string out;
  for (const double value : y.ticks(5)) {
    out += fmt::format(
        "<line class=\"grid\" x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>"
        "<text class=\"tick end\" x=\"{3:.1f}\" y=\"{4:.1f}\">{5}</text>",
        x.from, x.to, y.place(value), x.from - 8, y.place(value) + 4, number(value));
  }
  return out;
}

// Lines across the plot, each with a colour and a dash of its own; adds their names to the legend.
std::string reference_lines(const Json& item, const Axis& x, const Axis& y, std::string& legend) {
  std::string out;
  int style = 0;
  for (const Json& line : list(item, "reference_lines")) {
    const double value = line.is_object() ? value_or_nan(line.value("y", Json())) : value_or_nan(Json());
    if (!y.takes(value)) continue;
    const std::string name = text_at(line, "name");
    out += fmt::format(
        "<line class=\"reference r{5}\" x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"><title>{3}: {4}"
        "</title></line>",
        x.from, x.to, y.place(value), name, number(value), style);
    legend += fmt::format(
        "<span class=\"key\"><svg class=\"line_key\" viewBox=\"0 0 28 4\"><line class=\"reference r{}\" x1=\"0\" x2=\"28\" "
        "y1=\"2\" y2=\"2\"/></svg>{} ({})</span>",
        style, name, number(value));
    style = (style + 1) % kReferenceStyles;
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

// Whole numbers from 10,000 with commas; of others six digits, never as a power of ten if they are large.
std::string readable(double value) {
  const double size = std::fabs(value);
  if (size < 1e4 || size >= 1e15) return fmt::format("{:.6g}", value);
  std::string digits = fmt::format("{:.{}f}", size, size >= 1e5 || size == std::floor(size) ? 0 : 1);
  for (auto at = static_cast<std::ptrdiff_t>(std::min(digits.find('.'), digits.size())) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<std::size_t>(at), 1, ',');
  }
  return (value < 0 ? "-" : "") + digits;
}

std::string plain(const Json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return escape(value.get<std::string>());
  if (value.is_number()) return readable(value.get<double>());
  return escape(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

std::string line_plot(const Json& item) {
  Axis x{0, 1}, y{0, 1, flag(item, "y_log")};
  const Json series = list(item, "series");
  for (const Json& one : series) {
    for (const Json& value : list(one, "x")) x.add(value_or_nan(value));
    for (const Json& value : list(one, "y")) y.add(value_or_nan(value));
  }
  add_reference_lines(item, y);
  if (x.is_empty() || y.is_empty()) return kNoData;
  if (x.low == x.high) x.widen(0);
  y.widen(0.05);
  std::string legend, pictures;
  for (const Page& page : kPages) {
    legend.clear();  // the same every time
    y.from = page.height - kBottom;
    y.to = kTop;
    x.from = left_of(y);
    x.to = page.width - kRight;
    std::string picture = open_svg(item, page, page.height) + horizontal_grid(x, y);
    for (const double value : x.ticks(page.x_ticks)) {
      picture += fmt::format("<text class=\"tick middle\" x=\"{:.1f}\" y=\"{}\">{}</text>", x.place(value),
                             page.height - kBottom + 22, number(value));
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
    pictures += picture + reference_lines(item, x, y, legend) + lines + "</svg>";
  }
  return framed(item, legend, pictures);
}

std::string bar_plot(const Json& item) {
  Axis x{0, 1}, y{0, 1};
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
  double widest_name = 1;
  for (const Json& group : groups) widest_name = std::max(widest_name, text_width(raw_text(group)));
  std::string legend, pictures;
  for (const Page& page : kPages) {
    legend.clear();
    y.from = page.height - kBottom;
    y.to = kTop;
    x.from = left_of(y);
    x.to = page.width - kRight;
    const double group_width = (x.to - x.from) / static_cast<double>(count);
    const double bar = std::min(48.0, group_width * 0.8 / static_cast<double>(series.size()));
    std::string picture = open_svg(item, page, page.height) + horizontal_grid(x, y);
    for (std::size_t s = 0; s < series.size(); ++s) {
      const Json values = list(series[s], "values");
      const std::string name = text_at(series[s], "name");
      for (std::size_t g = 0; g < values.size(); ++g) {
        const double value = value_or_nan(values[g]);
        if (!std::isfinite(value)) continue;
        const double middle = x.from + group_width * (static_cast<double>(g) + 0.5);
        const double left = middle + bar * (static_cast<double>(s) - static_cast<double>(series.size()) / 2);
        const double top = std::min(y.place(value), y.place(0)), height = std::fabs(y.place(value) - y.place(0));
        picture += fmt::format(
            "<rect class=\"f{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"2\">"
            "<title>{}, {}: {}</title></rect>",
            s % kColours, left + 1, top, std::max(bar - 2, 1.0), height, name,
            g < groups.size() ? plain(groups[g]) : "", number(value));
      }
      legend += key(fmt::format("f{}", s % kColours), name);
    }
    // Names that do not fit beside one another are cut, and where that would leave little, some are left out.
    const auto step = static_cast<std::size_t>(std::ceil(std::min(widest_name + 8, 60.0) / group_width));
    for (std::size_t g = 0; g < std::min(groups.size(), count); g += step) {
      const double room = std::min(group_width * static_cast<double>(step),
                                   2 * (x.to + kRight - (x.from + group_width * (static_cast<double>(g) + 0.5))));
      picture += fmt::format("<text class=\"tick middle\" x=\"{:.1f}\" y=\"{}\">{}</text>",
                             x.from + group_width * (static_cast<double>(g) + 0.5), page.height - kBottom + 22,
                             escape(fitting(raw_text(groups[g]), room)));
    }
    pictures += picture + reference_lines(item, x, y, legend) + "</svg>";
  }
  return framed(item, legend, pictures);
}

namespace {

// Cells in rows and columns, with names at the left and below.
struct Grid {
  static constexpr double kRow = 28;
  const Page& page;
  std::vector<std::string> rows;  // names, not escaped
  std::size_t columns;
  std::size_t group = 0;  // columns that stand together; 0: no gaps
  double right = kRight;  // room at the right
  double left = 0, cell = 0, gap = 0, below = 0;

  Grid(const Page& on, std::vector<std::string> names, std::size_t count, std::size_t group_size = 0,
       double room = kRight)
      : page(on), rows(std::move(names)), columns(count), group(group_size), right(room) {
    double widest = 20;
    for (const std::string& name : rows) widest = std::max(widest, text_width(name));
    left = std::min(widest, 0.34 * page.width) + 14;
    gap = group > 0 && group < columns ? 5 : 0;
    const double gaps = gap * static_cast<double>(group > 0 ? (columns - 1) / group : 0);
    cell = std::min(56.0, (page.width - left - right - gaps) / static_cast<double>(columns));
    below = kTop + kRow * static_cast<double>(rows.size());
  }
  double x(std::size_t column) const {
    return left + cell * static_cast<double>(column) + gap * static_cast<double>(group > 0 ? column / group : 0);
  }
  double y(std::size_t row) const { return kTop + kRow * static_cast<double>(row); }
  double height() const { return below + kBottom; }

  std::string row_names() const {
    std::string out;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const std::string shown = fitting(rows[r], left - 14);
      out += fmt::format("<text class=\"tick end\" x=\"{:.1f}\" y=\"{:.1f}\">{}{}</text>", left - 8, y(r) + 19,
                         escape(shown), shown == rows[r] ? "" : "<title>" + escape(rows[r]) + "</title>");
    }
    return out;
  }
  // Names that do not touch.
  std::string column_names(const Json& names) const {
    double widest = 1;
    for (const Json& name : names) widest = std::max(widest, text_width(raw_text(name)));
    const auto step = static_cast<std::size_t>(std::ceil((std::min(widest, 80.0) + 10) / cell));
    std::string out;
    for (std::size_t c = 0; c < std::min(names.size(), columns); c += step) {
      const double middle = x(c) + cell / 2, room = 2 * std::min(middle, page.width - middle);
      out += fmt::format("<text class=\"tick middle\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", middle, below + 22,
                         escape(fitting(raw_text(names[c]), std::min(room, 80.0))));
    }
    return out;
  }
  // The hatching of shared heads. Each page has its own: a pattern inside a picture that is not shown is not there.
  std::string hatching() const {
    return fmt::format(
        "<defs><pattern id=\"hatch_{}\" width=\"7\" height=\"7\" patternUnits=\"userSpaceOnUse\" "
        "patternTransform=\"rotate(45)\"><rect class=\"shared\" width=\"7\" height=\"7\"/>"
        "<line class=\"stripe\" x1=\"0\" x2=\"0\" y1=\"0\" y2=\"7\"/></pattern></defs>",
        page.name);
  }
  // `style`: attributes of the cell.
  std::string rect(std::size_t row, std::size_t column, const std::string& style, const std::string& title) const {
    const double space = cell > 8 ? 1 : 0.3;
    return fmt::format(
        "<rect {} x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"{}\"><title>{}</title></rect>",
        style, x(column) + space, y(row) + 1, cell - 2 * space, kRow - 2, cell > 8 ? 2 : 0, title);
  }
  std::string hatch() const { return fmt::format("fill=\"url(#hatch_{})\"", page.name); }
};

std::vector<std::string> names_of(const Json& names, std::size_t count) {
  std::vector<std::string> out;
  for (std::size_t i = 0; i < count; ++i) out.push_back(i < names.size() ? raw_text(names[i]) : "");
  return out;
}

}  // namespace

std::string heatmap(const Json& item) {
  const Json rows = list(item, "values"), x_names = list(item, "x"), y_names = list(item, "y");
  std::size_t columns = 0;
  for (const Json& row : rows) columns = std::max(columns, row.is_array() ? row.size() : 0);
  if (columns == 0) return kNoData;
  bool any_shared = false;
  std::string pictures;
  for (const Page& page : kPages) {
    const Grid grid(page, names_of(y_names, rows.size()), columns);
    std::string picture = open_svg(item, page, grid.height()) + grid.hatching() + grid.row_names();
    for (std::size_t r = 0; r < rows.size(); ++r) {
      if (!rows[r].is_array()) continue;
      for (std::size_t c = 0; c < rows[r].size(); ++c) {
        const double value = value_or_nan(rows[r][c]);
        const bool is_shared = !std::isfinite(value);
        const double shade = is_shared ? 1 : 0.06 + 0.94 * std::clamp(value, 0.0, 1.0);
        any_shared |= is_shared;
        const std::string where = fmt::format("{} {}, {} {}: ", text_at(item, "y_label"), escape(grid.rows[r]),
                                              text_at(item, "x_label"), c < x_names.size() ? plain(x_names[c]) : "");
        picture +=
            grid.rect(r, c, is_shared ? grid.hatch() : fmt::format("class=\"f0\" fill-opacity=\"{:.3f}\"", shade),
                      where + (is_shared ? "shared, every token" : fmt::format("{:.1f} % of the tokens", 100 * value)));
        if (!is_shared && grid.cell >= 26) {
          picture += fmt::format("<text class=\"in{}\" x=\"{:.1f}\" y=\"{:.1f}\">{:.0f}</text>",
                                 shade > 0.6 ? " on" : "", grid.x(c) + grid.cell / 2, grid.y(r) + 19, 100 * value);
        }
      }
    }
    pictures += picture + grid.column_names(x_names) + "</svg>";
  }
  std::string legend = key("ramp", "share of the tokens, 0 to 100 %");
  if (any_shared) legend += key("shared_key", "shared: every token");
  return framed(item, legend, pictures);
}

std::string heads(const Json& item) {
  const Json rows = list(item, "rows"), x_names = list(item, "x");
  std::size_t columns = 0;
  std::vector<std::string> names, notes;
  double note_width = 0;
  for (const Json& row : rows) {
    columns = std::max(columns, list(row, "shared").size());
    names.push_back(row.is_object() ? raw_text(row.value("name", Json())) : "");
    notes.push_back(row.is_object() ? raw_text(row.value("note", Json())) : "");
    note_width = std::max(note_width, text_width(notes.back()));
  }
  if (columns == 0) return kNoData;
  const std::size_t group = item.value("group", std::size_t{0});
  std::string pictures;
  for (const Page& page : kPages) {
    const Grid grid(page, names, columns, group > 1 ? group : 0, std::max(kRight, note_width + 14));
    std::string picture = open_svg(item, page, grid.height()) + grid.hatching() + grid.row_names();
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const Json shared = list(rows[r], "shared");
      for (std::size_t c = 0; c < shared.size(); ++c) {
        const bool is_shared = shared[c].is_boolean() && shared[c].get<bool>();
        picture += grid.rect(
            r, c, is_shared ? grid.hatch() : "class=\"f0\" fill-opacity=\"0.45\"",
            fmt::format("{}, head {}: {}", escape(names[r]), c, is_shared ? "shared, every token" : "routed"));
      }
      picture += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>",
                             grid.x(columns - 1) + grid.cell + 8, grid.y(r) + 19, escape(notes[r]));
    }
    pictures += picture + grid.column_names(x_names) + "</svg>";
  }
  std::string legend = key("shared_key", "shared: every token") + key("f0 half", "routed: the tokens that select it");
  if (group > 1) legend += fmt::format("<span class=\"key\">gaps: {} query heads share a KV head</span>", group);
  return framed(item, legend, pictures);
}

}  // namespace moh::svg
