#include "cli/report/report.h"

#include <fmt/format.h>

#include <cmath>

#include "cli/report/svg_plot.h"

namespace moh {
namespace {

using svg::escape;

// Colours after Okabe and Ito, told apart by colour-blind readers; a dark page has its own shades.
constexpr const char* kStyle = R"(
:root{--ink:#1c2430;--quiet:#667085;--line:#e4e7ec;--paper:#fff;--card:#f8f9fb;--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#cc79a7;--c4:#b58900;--c5:#56b4e9}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--quiet:#98a2b3;--line:#2c3442;--paper:#12161d;--card:#1a2029;--c0:#4aa8e0;--c1:#f08a3c;--c2:#2cc79a;--c3:#e19bc4;--c4:#e0b030;--c5:#8fd0f5}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:860px;margin:0 auto;padding:40px 20px 80px}
h1{font-size:28px;line-height:1.2;margin:0 0 6px}h2{font-size:20px;margin:44px 0 8px}h3{font-size:15px;margin:24px 0 6px}
.subtitle,.note,figcaption{color:var(--quiet);font-size:14px}
.summary{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 18px 14px 36px;margin:22px 0}
.summary li{margin:4px 0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;margin:20px 0}dt{color:var(--quiet)}dd{margin:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:15px}
th,td{padding:7px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--quiet);font-weight:600;font-size:13px}th:first-child,td:first-child{text-align:left}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 14px;white-space:pre-wrap;font-size:14px;margin:6px 0 16px}
figure{margin:14px 0}svg{width:100%;height:auto;display:block;font:12px system-ui,sans-serif}
.grid{stroke:var(--line)}.reference{stroke:var(--quiet);stroke-dasharray:2 4}
polyline{fill:none;stroke-width:2.2;stroke-linejoin:round}.dashed{stroke-dasharray:6 4}
.tick,.axis,.quiet{fill:var(--quiet)}.end{text-anchor:end}.middle{text-anchor:middle}.label{font-weight:600}.label.quiet{font-weight:400}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}.c4{stroke:var(--c4)}.c5{stroke:var(--c5)}
.t0{fill:var(--c0)}.t1{fill:var(--c1)}.t2{fill:var(--c2)}.t3{fill:var(--c3)}.t4{fill:var(--c4)}.t5{fill:var(--c5)}
.cell{fill:var(--c0)}.shared{fill:var(--line)}.in{text-anchor:middle;font-size:11px;fill:var(--ink)}.in.on{fill:#fff}
)";

std::string text_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

std::string cell_text(const Json& value) {
  if (value.is_string()) return escape(value.get<std::string>());
  if (value.is_null()) return "&ndash;";
  if (value.is_number_float()) return fmt::format("{:.6g}", value.get<double>());
  return escape(value.dump());
}

std::string table(const Json& item) {
  std::string out = "<div class=\"scroll\"><table><thead><tr>";
  for (const Json& column : item.value("columns", Json::array())) out += "<th>" + cell_text(column) + "</th>";
  out += "</tr></thead><tbody>";
  for (const Json& row : item.value("rows", Json::array())) {
    out += "<tr>";
    for (const Json& value : row) out += "<td>" + cell_text(value) + "</td>";
    out += "</tr>";
  }
  out += "</tbody></table></div>";
  if (const std::string note = text_of(item, "note"); !note.empty())
    out += "<p class=\"note\">" + escape(note) + "</p>";
  return out;
}

std::string figure(const Json& item, const std::string& svg) {
  return "<figure><h3>" + escape(text_of(item, "title")) + "</h3>" + svg + "</figure>";
}

std::string render_item(const Json& item) {
  const std::string type = text_of(item, "type");
  if (type == "lines") return figure(item, svg::line_plot(item));
  if (type == "heatmap") return figure(item, svg::heatmap(item));
  if (type == "table") return table(item);
  if (type == "text") return "<p>" + escape(text_of(item, "text")) + "</p>";
  if (type == "code") return "<pre>" + escape(text_of(item, "text")) + "</pre>";
  fail("[report] unknown item type `", type, "`; known: lines, heatmap, table, text, code");
}

}  // namespace

std::string render_report(const Json& report) {
  MOH_CHECK(report.is_object(), "[report] expected an object, got ", report.type_name());
  const std::string title = escape(text_of(report, "title"));
  std::string out =
      "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width,initial-scale=1\"><title>" +
      title + "</title><style>" + kStyle + "</style></head><body><main><h1>" + title + "</h1>";
  out += "<p class=\"subtitle\">" + escape(text_of(report, "subtitle")) + "</p>";
  if (const auto summary = report.find("summary"); summary != report.end() && !summary->empty()) {
    out += "<ul class=\"summary\">";
    for (const Json& sentence : *summary) out += "<li>" + cell_text(sentence) + "</li>";
    out += "</ul>";
  }
  if (const auto facts = report.find("facts"); facts != report.end()) {
    out += "<dl>";
    for (const Json& fact : *facts) {
      out += "<dt>" + escape(text_of(fact, "name")) + "</dt><dd>" + escape(text_of(fact, "value")) + "</dd>";
    }
    out += "</dl>";
  }
  for (const Json& section : report.value("sections", Json::array())) {
    out += "<section><h2>" + escape(text_of(section, "heading")) + "</h2>";
    if (const std::string text = text_of(section, "text"); !text.empty()) out += "<p>" + escape(text) + "</p>";
    for (const Json& item : section.value("items", Json::array())) out += render_item(item);
    out += "</section>";
  }
  return out + "</main></body></html>\n";
}

}  // namespace moh
