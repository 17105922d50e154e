#include "tests/golden/golden_file.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "moh/base/error.h"
#include "moh/io/checkpoint.h"
#include "moh/io/safetensors.h"

namespace moh::golden {

int tensors_compared = 0;

GoldenFile::GoldenFile(const std::string& file) : path(file) {
  metadata = io::SafetensorsFile(file).metadata();
  kind = metadata.contains("kind") ? metadata.at("kind") : "";
  if (metadata.contains("config")) config = parse_json(metadata.at("config"), file);
  for (auto& [name, tensor] : io::load_tensors(file)) tensors.emplace(name, tensor);
}

const Tensor& GoldenFile::operator[](const std::string& name) const {
  const auto found = tensors.find(name);
  if (found == tensors.end()) throw Error(path + " has no tensor " + name);
  return found->second;
}

double GoldenFile::gradient_scale(const std::string& prefix) const {
  double largest = 0;
  for (const auto& [name, tensor] : tensors) {
    if (name.starts_with(prefix)) largest = std::max(largest, tensor.abs().max().item<double>());
  }
  return largest;
}

void expect_close(const GoldenFile& file, const std::string& name, const Tensor& actual, double atol, double rtol) {
  const Tensor expected = file[name].to(at::kDouble);
  ASSERT_EQ(actual.numel(), expected.numel()) << file.path << ": " << name;
  const Tensor got = actual.detach().to(at::kDouble).reshape(expected.sizes());
  ++tensors_compared;
  if (expected.numel() == 0) return;
  const Tensor excess = (got - expected).abs() - (expected.abs() * rtol + atol);
  const std::int64_t worst = excess.argmax().item<std::int64_t>();
  EXPECT_TRUE(at::isfinite(got).all().item<bool>() && excess.max().item<double>() <= 0)
      << file.path << ": " << name << "[" << worst << "] is " << got.flatten()[worst].item<double>() << ", expected "
      << expected.flatten()[worst].item<double>() << "; largest error " << (got - expected).abs().max().item<double>();
}

void expect_gradient(const GoldenFile& file, const std::string& name, const Tensor& actual, const std::string& prefix) {
  ASSERT_TRUE(actual.defined()) << file.path << ": " << name << " is missing";
  expect_close(file, name, actual, 1e-5 * file[name].abs().max().item<double>() + 1e-6 * file.gradient_scale(prefix));
}

void expect_same_sets(const GoldenFile& file, const std::string& name, const Tensor& actual) {
  const Tensor expected = file[name];
  ++tensors_compared;
  EXPECT_TRUE(at::equal(std::get<0>(actual.reshape(expected.sizes()).sort(-1)), std::get<0>(expected.sort(-1))))
      << file.path << ": " << name;
}

void expect_exact(const GoldenFile& file, const std::string& name, const Tensor& actual) {
  ++tensors_compared;
  EXPECT_TRUE(at::equal(actual.reshape(file[name].sizes()), file[name]))
      << file.path << ": " << name << "\ngot " << actual << "\nexpected " << file[name];
}

std::map<std::string, Tensor> leaf_parameters(const GoldenFile& file) {
  std::map<std::string, Tensor> leaves;
  for (const auto& [name, tensor] : file.tensors) {
    if (name.starts_with("param.")) leaves[name.substr(6)] = tensor.clone().set_requires_grad(true);
  }
  return leaves;
}

std::optional<Tensor> optionally(const std::map<std::string, Tensor>& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  return found == tensors.end() ? std::nullopt : std::optional<Tensor>(found->second);
}

void expect_gradients(const GoldenFile& file, const std::map<std::string, Tensor>& leaves, const Tensor& x,
                      const std::string& prefix) {
  if (file.has(prefix + "in.x")) expect_gradient(file, prefix + "in.x", x.grad(), prefix);
  for (const auto& [name, leaf] : leaves) {
    if (file.has(prefix + "param." + name)) expect_gradient(file, prefix + "param." + name, leaf.grad(), prefix);
  }
}

void clear_gradients(std::map<std::string, Tensor>& leaves, Tensor& x) {
  for (auto& [name, leaf] : leaves) leaf.mutable_grad() = Tensor();
  x.mutable_grad() = Tensor();
}

std::map<std::string, Check>& kinds() {
  static std::map<std::string, Check> table;
  return table;
}

}  // namespace moh::golden
