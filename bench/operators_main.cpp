// operator_bench SUBJECT [--device cuda] [--AXIS values]...: the subjects that need nothing but operators, for machines
// where `moh bench` cannot be built (scripts/gpu_check). One JSON object a line on stdout.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <sstream>

#include "bench/bench.h"
#include "moh/base/error.h"
#include "moh/ops/cores.h"

namespace moh::bench {
namespace {

template <class T>
T parse(const std::string& flag, const std::string& text) {
  if constexpr (std::is_same_v<T, std::string>) {
    return text;
  } else {
    std::istringstream in(text);
    T value{};
    MOH_CHECK((in >> value) && in.peek() == std::istringstream::traits_type::eof(), "[bench] ", flag, " `", text,
              "` is not a number");
    return value;
  }
}

// Sets the axis or option of that flag.
void set(Grid& grid, Options& options, const std::string& flag, const std::string& text) {
  std::string wanted = flag.substr(std::min<std::size_t>(flag.size(), 2));
  std::replace(wanted.begin(), wanted.end(), '-', '_');
  bool found = true;
  if (wanted == "seconds") {
    options.seconds = parse<double>(flag, text);
  } else if (wanted == "pairs") {
    options.pairs = parse<std::int64_t>(flag, text);
  } else if (wanted == "seed") {
    options.seed = parse<std::uint64_t>(flag, text);
  } else if (wanted == "device") {
    options.device = at::Device(text);
  } else {
    found = false;
  }
  auto visit = [&](const char* name, auto& values, const char*) {
    if (wanted != name) return;
    found = true;
    std::istringstream in(text);
    for (std::string item; std::getline(in, item, ',');) {
      values.push_back(parse<typename std::decay_t<decltype(values)>::value_type>(flag, item));
    }
  };
  grid.fields(visit);
  MOH_CHECK(found && flag.starts_with("--"), "[bench] unknown flag `", flag, "`");
}

void run(const std::vector<std::string>& arguments) {
  std::string names;
  for (const Subject& subject : operator_subjects()) names += std::string(names.empty() ? "" : "|") + subject.name;
  MOH_CHECK(arguments.size() % 2 == 1, "[bench] usage: operator_bench ", names, " [--FLAG VALUE]...");
  ops::use_available_cores();
  Grid grid;
  Options options;
  for (std::size_t i = 1; i + 1 < arguments.size(); i += 2) set(grid, options, arguments[i], arguments[i + 1]);
  for (const Subject& subject : operator_subjects()) {
    if (subject.name != arguments[0]) continue;
    for (const Case& c : make_cases(subject, grid)) {
      at::set_num_threads(static_cast<int>(c.threads));
      std::printf("%s\n", subject.run(c, options).json().c_str());
      std::fflush(stdout);
    }
    return;
  }
  fail("[bench] unknown subject `", arguments[0], "`; known: ", names);
}

}  // namespace
}  // namespace moh::bench

int main(int argc, char** argv) {
  try {
    moh::bench::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    const std::string text = error.what();
    std::fprintf(stderr, "operator_bench: error: %s\n", text.substr(0, text.find('\n')).c_str());
    return 1;
  }
  return 0;
}
