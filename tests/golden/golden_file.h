// A golden file, how its values are compared, and the table of kinds: every *.safetensors of the folder is a case that
// describes itself in its metadata. A source file of this folder handles some kinds and registers them here.
#pragma once

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>

#include "moh/base/fields.h"

namespace moh::golden {

using at::Tensor;

// Tolerances of the golden files: |a - b| <= atol + rtol * |b|.
constexpr double kRtol = 1e-4, kLayerAtol = 1e-5, kModelAtol = 5e-5;

struct GoldenFile {
  std::string path, kind;
  Json config;
  std::map<std::string, std::string> metadata;
  std::map<std::string, Tensor> tensors;

  explicit GoldenFile(const std::string& file);
  bool has(const std::string& name) const { return tensors.contains(name); }
  // Weights of a half type whose reference was computed in fp32 are loaded as fp32.
  std::optional<at::ScalarType> load_as() const {
    const bool widened = config.is_object() && config.value("load_as", "") == "fp32";
    return widened ? std::optional(at::kFloat) : std::nullopt;
  }
  const Tensor& operator[](const std::string& name) const;
  std::int64_t number(const char* key) const { return config.at(key).get<std::int64_t>(); }
  // Largest value in all gradients whose names begin with `prefix`.
  double gradient_scale(const std::string& prefix) const;
};

// Compared so far, over all files.
extern int tensors_compared;

void expect_close(const GoldenFile& file, const std::string& name, const Tensor& actual, double atol,
                  double rtol = kRtol);
void expect_gradient(const GoldenFile& file, const std::string& name, const Tensor& actual, const std::string& prefix);
// Rows of chosen heads, compared as sets.
void expect_same_sets(const GoldenFile& file, const std::string& name, const Tensor& actual);
void expect_exact(const GoldenFile& file, const std::string& name, const Tensor& actual);

// The file's `param.*` without that prefix, each a leaf that wants a gradient.
std::map<std::string, Tensor> leaf_parameters(const GoldenFile& file);
std::optional<Tensor> optionally(const std::map<std::string, Tensor>& tensors, const std::string& name);
// Gradients of `x` and of the leaves, as far as the file has them.
void expect_gradients(const GoldenFile& file, const std::map<std::string, Tensor>& leaves, const Tensor& x,
                      const std::string& prefix);
void clear_gradients(std::map<std::string, Tensor>& leaves, Tensor& x);

using Check = void (*)(const GoldenFile&);
// Kinds that code handles; nullptr: planned, listed as skipped.
std::map<std::string, Check>& kinds();
struct RegisteredKind {
  RegisteredKind(const char* kind, Check check) { kinds()[kind] = check; }
};

}  // namespace moh::golden
