// The way of KV heads that few rows need: generation, above all.
#pragma once

#include "moh/kernels/cpu/work.h"

namespace moh::kernels::MOH_ISA {

// Rows of a KV head up to which packing its keys and values would cost more than it saves.
constexpr int64_t kFewRows = 8;

// Writes out and lse of the rows of all such KV heads.
void forward_few(const HeadAttentionParams& p, const SequenceRows& rows);

}  // namespace moh::kernels::MOH_ISA
