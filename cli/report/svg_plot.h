// Plots as inline SVG, coloured by the page's CSS classes (cli/report/report.cpp). What is text rather than a tick
// (legend, axis labels) is HTML around the picture, so that it wraps and stays readable on a phone.
#pragma once

#include <string>

#include "moh/base/fields.h"

namespace moh::svg {

std::string escape(const std::string& text);
// A number as people read it: 614,400, not 6.144e+05.
std::string readable(double value);
// A string as it is, a number readable, null as nothing, anything else as JSON; escaped.
std::string plain(const Json& value);

// Each takes an item of the report (cli/report/report.h) and returns what stands inside its <figure>, without the
// title.
std::string line_plot(const Json& item);
std::string bar_plot(const Json& item);
std::string heatmap(const Json& item);
std::string heads(const Json& item);

}  // namespace moh::svg
