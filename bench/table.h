// Rows as people read them: a text table while a benchmark runs, a Markdown file to keep, geometric means at the end.
#pragma once

#include <string>
#include <vector>

#include "bench/row.h"
#include "moh/base/fields.h"

namespace moh::bench {

Json json_of(const Row& row);

// Columns by name: "tokens", "ratio", ...; an unknown name is an Error.
std::string text_header(const std::vector<std::string>& columns);
std::string text_row(const std::vector<std::string>& columns, const Json& row);
std::string markdown_table(const std::vector<std::string>& columns, const std::vector<Json>& rows);

// Geometric mean and worst case of the ratios of rows that differ in shape or threads alone: one object for each
// direction, dtype, mask, activated share, rival and so on, in order of appearance. Subjects that run a whole model are
// also told apart by tokens. Where the same cases ran with all heads, `mean_skipping` is time of moh / time of moh with
// all heads: what skipping alone gives; the ratio at all heads is what the kernels alone give.
std::vector<Json> summarise(const std::vector<Json>& rows);
// What these summaries differ in, and their figures.
std::vector<std::string> summary_columns(const std::vector<Json>& summaries);

// A complete file for bench/results: what was measured, where, with which command; `rows` must not be empty.
std::string markdown_report(const std::string& command, const Json& machine, const std::vector<std::string>& columns,
                            const std::vector<Json>& rows, bool with_title);

}  // namespace moh::bench
