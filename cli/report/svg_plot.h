// Plots as inline SVG, coloured by the page's CSS classes (cli/report/report.cpp).
#pragma once

#include <string>

#include "moh/base/fields.h"

namespace moh::svg {

std::string escape(const std::string& text);
std::string line_plot(const Json& item);
std::string heatmap(const Json& item);

}  // namespace moh::svg
