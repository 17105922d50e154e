// moh as a library. Without arguments a Mixture-of-Head layer on tensors of your own; with MODEL [TEXT] a model folder
// continues a text.
#include <ATen/ATen.h>

#include <cmath>
#include <iostream>

#include "moh/base/error.h"
#include "moh/generate/end_tokens.h"
#include "moh/generate/generate.h"
#include "moh/layers/moh_attention.h"
#include "moh/models/llama.h"
#include "moh/text/text_stream.h"
#include "moh/text/tokenizer.h"

namespace {

// A layer of 8 heads of 32, two of them shared; every token chooses four of the other six.
void layer() {
  const std::int64_t heads = 8, shared = 2, top_k = 4, hidden = 256;
  auto weight = [](std::int64_t rows, std::int64_t columns) {
    return at::randn({rows, columns}).div_(std::sqrt(double(columns))).requires_grad_();
  };
  moh::layers::MohAttentionWeights weights{.qkv = moh::layers::Linear(weight(3 * hidden, hidden)),
                                           .proj = moh::layers::Linear(weight(hidden, hidden)),
                                           .wg = weight(heads - shared, hidden),
                                           .wg_1 = weight(shared, hidden),
                                           .wg_0 = weight(2, hidden)};
  const auto output = moh::layers::moh_attention(at::randn({1, 512, hidden}), weights,
                                                 {.num_heads = heads, .shared_heads = shared, .top_k = top_k});
  output.y.square().mean().backward();  // every operator is differentiable
  std::cout << "y " << output.y.sizes() << ", " << output.routing.gates.ne(0).sum().item<std::int64_t>() << " of "
            << output.routing.gates.numel() << " heads computed, |dL/dW_g| " << weights.wg->grad().norm().item<double>()
            << '\n';
}

void generate(const std::string& folder, const std::string& text) {
  const auto model = moh::models::Llama::load(folder);
  const auto tokenizer = moh::text::load_tokenizer(folder);
  const auto prompt = moh::text::prompt_ids(*tokenizer, text, model.config().bos_token_id, /*parse_special=*/false);
  moh::text::TextStream stream({});  // whole characters as soon as they are there
  std::cout << text;
  const auto result = moh::generate::generate(model, prompt, /*max_tokens=*/32, /*sampling=*/{},
                                              moh::generate::end_tokens(folder, model.config()), [&](std::int64_t id) {
                                                std::cout << stream.push(tokenizer->piece_bytes(id)) << std::flush;
                                                return true;
                                              });
  std::cout << stream.finish() << '\n' << 100 * result.active_heads << " % of the heads were computed\n";
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc > 1) {
    generate(argv[1], argc > 2 ? argv[2] : "Once upon a time");
  } else {
    layer();
  }
} catch (const moh::Error& error) {  // "[place] what was expected, what came, what to do"
  std::cerr << error.what() << '\n';
  return 1;
}
