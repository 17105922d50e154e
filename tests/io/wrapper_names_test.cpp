#include "moh/io/wrapper_names.h"

#include <gtest/gtest.h>

namespace moh::io {
namespace {

using Names = std::vector<std::string>;

Names stripped(Names names) {
  strip_wrappers(names);
  return names;
}

TEST(WrapperNames, AreTakenAwayHoweverTheyAreNested) {
  const Names plain = {"patch.weight", "blocks.0.attn.q.weight"};
  for (const std::string prefix :
       {"", "module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.module.",
        "module.module.", "_fsdp_wrapped_module.", "model.model._orig_mod._orig_mod."}) {
    EXPECT_EQ(stripped({prefix + plain[0], prefix + plain[1]}), plain) << prefix;
  }
  // Parts of the model that were wrapped alone.
  EXPECT_EQ(stripped({"patch.weight", "blocks.0._orig_mod._checkpoint_wrapped_module.attn.q.weight"}), plain);
}

TEST(WrapperNames, OnesOwnStay) {
  const Names llama = {"model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight"};
  Names with_head = llama;
  with_head.push_back("lm_head.weight");
  for (const Names& names : {llama, with_head}) {
    EXPECT_EQ(stripped(names), names);
    for (const char* prefix : {"model.", "module.", "_orig_mod.", "module.model."}) {
      Names wrapped;
      for (const std::string& name : names) wrapped.push_back(prefix + name);
      EXPECT_EQ(stripped(wrapped), names) << prefix;
    }
  }
  for (const Names& names : {Names{"module.a", "b"}, Names{"model_a.b"}, Names{"a._orig_mod"}, Names{"a_orig_mod.b"},
                             Names{"_orig_model.b"}, Names{}}) {
    EXPECT_EQ(stripped(names), names);
  }
}

}  // namespace
}  // namespace moh::io
