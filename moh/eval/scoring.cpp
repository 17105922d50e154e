#include "moh/eval/scoring.h"

#include <cmath>

#include "moh/base/error.h"
#include "moh/eval/python_text.h"

namespace moh::eval {
namespace {

// The first of the largest; a NaN counts as the largest, as for numpy.
int argmax(const std::vector<double>& values) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(values[i])) return static_cast<int>(i);
    if (values[i] > values[best]) best = i;
  }
  return static_cast<int>(best);
}

}  // namespace

std::vector<double> score_likelihoods(const Task& task, const Document& document,
                                      const std::vector<Likelihood>& likelihoods) {
  std::vector<double> values, by_length;
  for (std::size_t i = 0; i < likelihoods.size(); ++i) {
    values.push_back(likelihoods[i].log_likelihood);
    const std::size_t length = i < document.choices.size() ? count_code_points(document.choices[i]) : 1;
    by_length.push_back(values.back() / static_cast<double>(length));
  }
  std::vector<double> scores;
  for (const std::string& metric : task.metrics) {
    if (task.kind == Kind::kLogLikelihood) {
      scores.push_back(metric == "perplexity" ? values[0] : (likelihoods[0].greedy ? 1 : 0));
    } else if (task.score == Score::kTrueMass) {
      double all = 0, true_mass = 0;
      for (const double value : values) all += std::exp(value);
      for (std::size_t i = 0; i < values.size(); ++i) {
        if (document.labels[i] == 1) true_mass += std::exp(values[i]) / all;
      }
      scores.push_back(true_mass);
    } else {
      scores.push_back(argmax(metric == "acc_norm" ? by_length : values) == document.gold ? 1 : 0);
    }
  }
  return scores;
}

double score_text(const Task& task, const Document& document, const std::string& filtered) {
  return task.matches(filtered, document.targets) ? 1 : 0;
}

}  // namespace moh::eval
