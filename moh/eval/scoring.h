// Scores of one document, from what the model said.
#pragma once

#include <string>
#include <vector>

#include "moh/eval/likelihood.h"
#include "moh/eval/task.h"

namespace moh::eval {

// Values in the order of task.metrics.
std::vector<double> score_likelihoods(const Task& task, const Document& document,
                                      const std::vector<Likelihood>& likelihoods);
double score_text(const Task& task, const Document& document, const std::string& filtered);

}  // namespace moh::eval
