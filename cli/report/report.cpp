#include "cli/report/report.h"

#include <fmt/format.h>

#include "cli/report/svg_plot.h"

namespace moh {
namespace {

// Colours after Okabe and Ito, told apart by colour-blind readers; a dark page has its own shades.
constexpr const char* kStyle = R"(
:root{color-scheme:light dark;--ink:#1c2430;--quiet:#5d687a;--line:#e4e7ec;--stripe:#c3cad5;--paper:#fff;--card:#f7f8fa;--on:#fff;--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b5588c;--c4:#9a7400;--c5:#3d9bd6}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--quiet:#9aa5b6;--line:#2c3442;--stripe:#475264;--paper:#12161d;--card:#1a2029;--on:#0d1117;--c0:#4aa8e0;--c1:#f08a3c;--c2:#2cc79a;--c3:#e19bc4;--c4:#e0b030;--c5:#8fd0f5}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;-webkit-text-size-adjust:100%;overflow-wrap:break-word}
main{max-width:820px;margin:0 auto;padding:48px 20px 80px}
h1{font-size:clamp(24px,5vw,32px);line-height:1.2;letter-spacing:-.015em;margin:0 0 6px}
h2{font-size:21px;letter-spacing:-.01em;margin:52px 0 10px;padding-top:22px;border-top:1px solid var(--line)}h3{font-size:15px;margin:0 0 6px}
.subtitle,.note,.axis,.legend{color:var(--quiet);font-size:14px}.subtitle,.note{margin:4px 0}
.summary{background:var(--card);border-left:4px solid var(--c0);border-radius:6px;padding:14px 18px 14px 36px;margin:26px 0}.summary li{margin:4px 0}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px 20px;margin:26px 0}dt{color:var(--quiet);font-size:13px}dd{margin:0;font-size:17px;font-weight:600;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;margin:18px 0 8px;background:linear-gradient(90deg,var(--paper) 40%,transparent) left/60px 100% no-repeat local,linear-gradient(270deg,var(--paper) 40%,transparent) right/60px 100% no-repeat local,linear-gradient(90deg,var(--stripe),transparent) left/14px 100% no-repeat scroll,linear-gradient(270deg,var(--stripe),transparent) right/14px 100% no-repeat scroll}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:15px}
th,td{padding:8px 10px;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}th{color:var(--quiet);font-weight:600;font-size:13px}.number{text-align:right}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:12px 14px;white-space:pre-wrap;font:14px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;margin:8px 0 18px}
figure{margin:26px 0}svg{width:100%;height:auto;display:block;font-size:13px}.narrow{display:none}.axis.x{text-align:center}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;margin-bottom:8px}.key{display:inline-flex;align-items:center;gap:7px}
.key i{width:18px;height:4px;border-radius:2px}.key .dash{background-image:linear-gradient(90deg,transparent 40%,var(--paper) 40%,var(--paper) 60%,transparent 60%)}
.key .line_key{width:28px;flex:none}.key .half{opacity:.45}.key .f0.half{height:12px}.key .ramp{width:60px;height:10px;background:linear-gradient(90deg,var(--line),var(--c0))}
.key .shared_key{height:12px;background:repeating-linear-gradient(45deg,var(--line) 0 3px,var(--stripe) 3px 5px)}
.grid{stroke:var(--line)}.reference{stroke-width:1.8}.r0{stroke:var(--quiet);stroke-dasharray:9 4}.r1{stroke:var(--c2);stroke-dasharray:2 3}.r2{stroke:var(--c4);stroke-dasharray:9 3 2 3}
polyline{fill:none;stroke-width:2.2;stroke-linejoin:round}.dashed{stroke-dasharray:7 4}
.tick{fill:var(--quiet)}.end{text-anchor:end}.middle,.in{text-anchor:middle}.in{fill:var(--ink)}.in.on{fill:var(--on)}
.shared{fill:var(--line)}.stripe{stroke:var(--stripe);stroke-width:3}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}.c4{stroke:var(--c4)}.c5{stroke:var(--c5)}
.f0{fill:var(--c0);background:var(--c0)}.f1{fill:var(--c1);background:var(--c1)}.f2{fill:var(--c2);background:var(--c2)}.f3{fill:var(--c3);background:var(--c3)}.f4{fill:var(--c4);background:var(--c4)}.f5{fill:var(--c5);background:var(--c5)}
@media(max-width:560px){main{padding:28px 16px 60px}.wide{display:none}.narrow{display:block}th,td{padding:7px 6px;white-space:normal;font-size:14px}th{font-size:12px}.number{white-space:nowrap}dl{grid-template-columns:repeat(auto-fit,minmax(130px,1fr))}}
@media print{figure,table{break-inside:avoid}}
)";

// The value under a key as escaped text, "" if there is none.
std::string text_of(const Json& object, const char* key) {
  if (!object.is_object()) return "";
  const auto found = object.find(key);
  return found == object.end() ? "" : svg::plain(*found);
}

std::string cell_text(const Json& value) { return value.is_null() ? "&ndash;" : svg::plain(value); }

// A column with any text, other than a lone dash for "none", is set to the left; numbers to the right.
bool is_numeric_column(const Json& rows, std::size_t column) {
  for (const Json& row : rows) {
    if (!row.is_array() || column >= row.size()) continue;
    const Json& value = row[column];
    if (!value.is_number() && !value.is_null() && value != "-") return false;
  }
  return true;
}

std::string table(const Json& item) {
  const Json columns = item.value("columns", Json::array()), rows = item.value("rows", Json::array());
  if (columns.empty() && rows.empty()) return "";
  const auto cell = [&](const char* tag, const Json& value, std::size_t column) {
    return fmt::format("<{}{}>{}</{}>", tag, is_numeric_column(rows, column) ? " class=\"number\"" : "",
                       cell_text(value), tag);
  };
  std::string out = "<div class=\"scroll\" tabindex=\"0\"><table><thead><tr>";
  for (std::size_t c = 0; c < columns.size(); ++c) out += cell("th", columns[c], c);
  out += "</tr></thead><tbody>";
  for (const Json& row : rows) {
    out += "<tr>";
    for (std::size_t c = 0; c < row.size(); ++c) out += cell("td", row[c], c);
    out += "</tr>";
  }
  out += "</tbody></table></div>";
  if (const std::string note = text_of(item, "note"); !note.empty()) out += "<p class=\"note\">" + note + "</p>";
  return out;
}

std::string figure(const Json& item, const std::string& svg) {
  const std::string title = text_of(item, "title");
  return "<figure>" + (title.empty() ? "" : "<h3>" + title + "</h3>") + svg + "</figure>";
}

std::string render_item(const Json& item) {
  const std::string type = text_of(item, "type");
  if (type == "lines") return figure(item, svg::line_plot(item));
  if (type == "bars") return figure(item, svg::bar_plot(item));
  if (type == "heatmap") return figure(item, svg::heatmap(item));
  if (type == "heads") return figure(item, svg::heads(item));
  if (type == "table") return table(item);
  if (type == "text") return "<p>" + text_of(item, "text") + "</p>";
  if (type == "code") return "<pre>" + text_of(item, "text") + "</pre>";
  fail("[report] unknown item type `", type, "`; known: lines, bars, heatmap, heads, table, text, code");
}

}  // namespace

std::string render_report(const Json& report) {
  MOH_CHECK(report.is_object(), "[report] expected an object, got ", report.type_name());
  const std::string title = text_of(report, "title");
  std::string out =
      "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width,initial-scale=1\"><title>" +
      title + "</title><style>" + kStyle + "</style></head><body><main><h1>" + title + "</h1>";
  if (const auto subtitle = text_of(report, "subtitle"); !subtitle.empty()) {
    out += "<p class=\"subtitle\">" + subtitle + "</p>";
  }
  if (const auto summary = report.find("summary"); summary != report.end() && !summary->empty()) {
    out += "<ul class=\"summary\">";
    for (const Json& sentence : *summary) out += "<li>" + cell_text(sentence) + "</li>";
    out += "</ul>";
  }
  if (const auto facts = report.find("facts"); facts != report.end()) {
    out += "<dl>";
    for (const Json& fact : *facts) {
      out += "<div><dt>" + text_of(fact, "name") + "</dt><dd>" + text_of(fact, "value") + "</dd></div>";
    }
    out += "</dl>";
  }
  for (const Json& section : report.value("sections", Json::array())) {
    out += "<section><h2>" + text_of(section, "heading") + "</h2>";
    if (const std::string text = text_of(section, "text"); !text.empty()) out += "<p>" + text + "</p>";
    for (const Json& item : section.value("items", Json::array())) out += render_item(item);
    out += "</section>";
  }
  return out + "</main></body></html>\n";
}

}  // namespace moh
