// The normal distribution's function and density, for GELU and its slope.
#pragma once

#include "moh/kernels/cpu/simd.h"

namespace moh::kernels::MOH_ISA {

struct Normal {
  Vec function, density;  // Phi(x), and Phi'(x)
};

// Phi(-t) = exp(-t^2 / 2) u P(u) with u = 1 / (1 + 0.305 t) for t >= 0: the scaled tail is smooth in u. P was fitted to
// 0 <= t <= 13 for the least relative error, 1e-7.
static inline Normal normal_of(Vec x) {
  constexpr float kHalfLog2E = 0.72134752044448170F, kDensityAt0 = 0.39894228040143268F;
  constexpr float kTail[] = {0.03669777512550354F, -0.15298204123973846F, 0.1857052594423294F,  -0.037965141236782074F,
                             0.12101483345031738F, 0.10342319309711456F,  0.12246639281511307F, 0.12163976579904556F};
  const Vec t = x < Vec{} ? -x : x;
  const Vec bell = exp2_of(x * x * -kHalfLog2E), u = 1.0F / (1.0F + 0.305F * t);
  Vec p = splat(kTail[0]);
#pragma GCC unroll 8
  for (int i = 1; i < 8; ++i) p = p * u + kTail[i];
  const Vec tail = bell * u * p;
  return {x < Vec{} ? tail : 1.0F - tail, bell * kDensityAt0};
}

}  // namespace moh::kernels::MOH_ISA
