// A grown vocabulary: old rows stay, new ones are means of the old pieces' rows, and the model answers as before.
#include "moh/convert/vocabulary.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "moh/base/error.h"

namespace {

using at::Tensor;
using namespace moh;

// Pieces by their text; encodes by the longest piece that fits.
class Pieces : public text::Tokenizer {
 public:
  explicit Pieces(std::vector<std::string> pieces) : pieces_(std::move(pieces)) {}
  std::vector<std::int64_t> encode(std::string_view text, bool) const override {
    std::vector<std::int64_t> ids;
    while (!text.empty()) {
      std::size_t best = 0, length = 0;
      for (std::size_t i = 0; i < pieces_.size(); ++i) {
        if (pieces_[i].size() > length && text.starts_with(pieces_[i])) {
          best = i;
          length = pieces_[i].size();
        }
      }
      if (length == 0) throw Error("no piece");
      ids.push_back(static_cast<std::int64_t>(best));
      text.remove_prefix(length);
    }
    return ids;
  }
  std::string decode(const std::vector<std::int64_t>&) const override { return ""; }
  std::string piece_bytes(std::int64_t id) const override { return pieces_[static_cast<std::size_t>(id)]; }
  std::int64_t vocab_size() const override { return static_cast<std::int64_t>(pieces_.size()); }
  std::int64_t bos_id() const override { return -1; }
  std::int64_t eos_id() const override { return 0; }
  bool adds_bos() const override { return false; }
  bool strips_leading_space() const override { return false; }
  std::string kind() const override { return "pieces"; }

 private:
  std::vector<std::string> pieces_;
};

TEST(Vocabulary, NewRowsAreMeansOfTheOldPieces) {
  for (const bool tied : {false, true}) {
    models::LlamaConfig config = models::llama_preset("moh-llm-tiny");
    config.vocab_size = 6;  // one row of padding
    config.num_hidden_layers = 1;
    config.hidden_size = 16;
    config.intermediate_size = 16;
    config.num_attention_heads = config.num_key_value_heads = 4;
    config.head_dim = 4;
    config.tie_word_embeddings = tied;
    config.moh = models::make_moh_config(1, 4, 0.75, std::nullopt, std::nullopt, "two-stage");
    const auto model = models::Llama::initialize(config, 1);
    const Pieces old({"", "a", "b", "c", "ab"}), grown({"", "a", "b", "c", "ab", "abc", "", "cc"});
    const auto larger = convert::grow_vocabulary(model, old, grown, 10);
    EXPECT_EQ(larger.config().vocab_size, 10);
    for (const auto& [name, tensor] : larger.parameters()) {
      if (name != "model.embed_tokens.weight" && name != "lm_head.weight") continue;
      Tensor before;
      for (const auto& [old_name, rows] : model.parameters()) {
        if (old_name == name) before = rows.narrow(0, 0, 5);
      }
      EXPECT_TRUE(at::equal(tensor.narrow(0, 0, 5), before)) << name;
      EXPECT_TRUE(at::allclose(tensor[5], (before[4] + before[3]) / 2)) << name << ": abc is ab, c";
      EXPECT_TRUE(at::allclose(tensor[6], before.mean(0))) << name << ": a special piece";
      EXPECT_TRUE(at::allclose(tensor[7], before[3])) << name << ": cc is c, c";
      EXPECT_TRUE(at::allclose(tensor[9], before.mean(0))) << name << ": padding";
    }
    const Tensor ids = at::tensor({1, 2, 3, 4}, at::TensorOptions(at::kLong)).unsqueeze(0);
    EXPECT_TRUE(at::allclose(larger.forward({.ids = ids}).logits.narrow(2, 0, 5),
                             model.forward({.ids = ids}).logits.narrow(2, 0, 5), 1e-5, 1e-6));
    EXPECT_THROW(convert::grow_vocabulary(model, old, grown, 7), Error);
    EXPECT_THROW(convert::grow_vocabulary(model, old, Pieces({"", "a", "x", "c", "ab", "abc"}), 10), Error);
  }
}

}  // namespace
