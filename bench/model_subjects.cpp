// The subjects that run layers and models of `moh`, after those of the operators alone.
#include "bench/bench.h"

namespace moh::bench {
namespace {

Grid layer_defaults() {
  Grid grid = operator_subjects().front().defaults;  // of attention
  grid.select = {};                                  // the router chooses heads
  grid.router = {"two-stage"};
  grid.hidden = {2048};
  grid.tokens = {2048};
  grid.rival = {"dense_twin"};
  return grid;
}

Grid model_defaults() {
  Grid grid;
  grid.threads = {0};
  grid.preset = {"moh-llm-s"};
  grid.router = {"two-stage"};
  grid.dtype = {"fp32"};
  grid.batch = {1};
  grid.tokens = {2048};
  grid.activated = {1.0, 0.75, 0.5};
  grid.rival = {"dense_twin"};
  return grid;
}

Grid vit_defaults() {
  Grid grid;
  grid.threads = {0};
  grid.preset = {"moh-vit-s-75", "moh-vit-b-50"};
  grid.dtype = {"fp32"};
  grid.direction = {"forward"};
  grid.batch = {4};
  grid.rival = {"dense_twin", "authors_form"};
  return grid;
}

Grid dit_defaults() {
  Grid grid;
  grid.threads = {0};
  grid.preset = {"moh-dit-b-2-75", "moh-dit-xl-2-75"};
  grid.dtype = {"fp32"};
  grid.batch = {2, 8};
  grid.tokens = {256, 1024};
  grid.rival = {"dense_twin", "authors_form"};
  return grid;
}

}  // namespace

// clang-format off
const std::vector<Subject>& subjects() {
  const std::string timing = "moh_ms rival rival_ms ratio quartiles ideal_ratio ", shares = "gemm_share rival_gemm_share ";
  const std::string model = "preset dtype router batch tokens threads activated " + timing + shares +
                            "attention_time_share attention_flops_share max_abs_error";
  static const std::vector<Subject> models = {
      {"layer", "a whole self-attention layer; rivals dense_twin, authors_form", layer_defaults(),
       {"dense_twin", "authors_form"}, run_layer,
       columns("direction dtype router hidden heads head_dim batch causal tokens threads activated " + timing + shares +
             "router_share backend projections max_abs_error")},
      {"prefill", "a prompt through a whole model; rivals dense_twin, authors_form", model_defaults(),
       {"dense_twin", "authors_form"}, run_prefill, columns(model)},
      {"train", "a training step of a whole model; rivals dense_twin, authors_form", model_defaults(),
       {"dense_twin", "authors_form"}, run_train, columns(model)},
      {"vit", "a whole vision transformer on 224 pixels; rivals dense_twin, authors_form", vit_defaults(),
       {"dense_twin", "authors_form"}, run_vit,
       columns("preset dtype direction batch threads activated images_per_second " + timing + "gflops " + shares +
             "attention_time_share attention_flops_share max_abs_error")},
      {"dit", "a DiT's forward pass; rivals dense_twin, authors_form, torch_dense (the twin by LibTorch alone)",
       dit_defaults(), {"dense_twin", "authors_form", "torch_dense"}, run_dit,
       columns("preset dtype batch tokens threads activated " + timing + "gflops " + shares +
             "attention_flops_share max_abs_error")},
  };
  static const std::vector<Subject> all = [] {
    std::vector<Subject> subjects = operator_subjects();
    subjects.insert(subjects.end(), models.begin(), models.end());
    return subjects;
  }();
  return all;
}
// clang-format on

}  // namespace moh::bench
