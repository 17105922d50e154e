// Timing of two sides in turn.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace moh::bench {

struct Timing {
  double moh_ms = 0, rival_ms = 0;                  // medians
  double ratio = 0, ratio_low = 0, ratio_high = 0;  // median and quartiles of moh / rival over pairs
  std::int64_t pairs = 0;
};

// `work` and, on a GPU, waiting until it is done there: launches return before that. On a CPU `work` itself.
std::function<void()> until_done(std::function<void()> work, at::Device device);

double milliseconds(const std::function<void()>& work);

// Warms both up, then runs them in turn for about `seconds`, at least `min_pairs` pairs; the order changes from pair to
// pair.
Timing time_pair(const std::function<void()>& moh, const std::function<void()>& rival, double seconds,
                 std::int64_t min_pairs);

// Least time of a few runs.
double best_ms(const std::function<void()>& work, double seconds);

// One way in which a rival can be written (a layout, an option); what is fast differs between machines and shapes.
struct Form {
  std::string name;
  std::function<void()> run;
};
// The form that runs fastest here: the rival of a benchmark is that one.
const Form& fastest(const std::vector<Form>& forms);

}  // namespace moh::bench
