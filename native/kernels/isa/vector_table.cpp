// SPDX-License-Identifier: Apache-2.0
// Norms, activations and rotation on rows of floats, and this instruction set's table of vector
// kernels.
#include <cmath>

#include "kernels/isa/attention.h"
#include "kernels/isa/lanes.h"
#include "kernels/vector_kernels.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// Calls body(offset, lanes of a, lanes of b) for each sixteen floats; the rest is padded with
// zeros. body returns what is written to y.
template <typename Body>
inline void map2(const float* a, const float* b, std::int64_t width, float* y, Body body) {
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(y + i, body(load(a + i), load(b + i)));
  if (i == width) return;
  float rest_a[kLanes] = {};
  float rest_b[kLanes] = {};
  for (std::int64_t j = i; j < width; ++j) rest_a[j - i] = a[j];
  for (std::int64_t j = i; j < width; ++j) rest_b[j - i] = b[j];
  store(rest_a, body(load(rest_a), load(rest_b)));
  for (std::int64_t j = i; j < width; ++j) y[j] = rest_a[j - i];
}

void rms_norm(const float* x, const float* weight, float epsilon, std::int64_t width, float* y) {
  Lanes squares = zero();
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes)
    squares = multiply_add(load(x + i), load(x + i), squares);
  float rest = 0.0f;
  for (; i < width; ++i) rest += x[i] * x[i];
  const float mean = (sum(squares) + rest) / static_cast<float>(width);
  const float factor = 1.0f / std::sqrt(mean + epsilon);
  map2(x, weight, width, y,
       [factor](Lanes v, Lanes w) { return multiply(multiply(v, broadcast(factor)), w); });
}

void add_rows(const float* a, const float* b, std::int64_t width, float* y) {
  map2(a, b, width, y, [](Lanes u, Lanes v) { return add(u, v); });
}

// x / (1 + e^-x)
inline Lanes silu(Lanes x) {
  return divide(x, add(broadcast(1.0f), exponential(subtract(zero(), x))));
}

// 0.5 x (1 + tanh(u)) = x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x³)
inline Lanes gelu_tanh(Lanes x) {
  const Lanes cubic = multiply_add(multiply(multiply(x, x), x), broadcast(0.044715f), x);
  const Lanes minus_2u = multiply(cubic, broadcast(-2.0f * 0.797884560802865356f));
  return divide(x, add(broadcast(1.0f), exponential(minus_2u)));
}

void glu(const float* gate, const float* up, Activation activation, std::int64_t width, float* y) {
  switch (activation) {
    case Activation::silu:
      map2(gate, up, width, y, [](Lanes g, Lanes u) { return multiply(silu(g), u); });
      return;
    case Activation::gelu_tanh:
      map2(gate, up, width, y, [](Lanes g, Lanes u) { return multiply(gelu_tanh(g), u); });
      return;
    case Activation::relu:
      map2(gate, up, width, y, [](Lanes g, Lanes u) { return multiply(maximum(g, zero()), u); });
      return;
    case Activation::gelu:
      for (std::int64_t i = 0; i < width; ++i) {
        const float g = gate[i];
        y[i] = 0.5f * g * (1.0f + ::erff(g * 0.707106781186547524f)) * up[i];
      }
      return;
  }
}

void rope(float* x, std::int64_t heads, std::int64_t head_dim, const float* cosine,
          const float* sine, std::int64_t pairs, RopeStyle style) {
  const std::int64_t step = style == RopeStyle::adjacent ? 2 : 1;
  const std::int64_t partner = style == RopeStyle::adjacent ? 1 : pairs;
  for (std::int64_t head = 0; head < heads; ++head, x += head_dim) {
    for (std::int64_t i = 0; i < pairs; ++i) {
      float& a = x[i * step];
      float& b = x[i * step + partner];
      const float rotated = a * cosine[i] - b * sine[i];
      b = a * sine[i] + b * cosine[i];
      a = rotated;
    }
  }
}

}  // namespace

extern const VectorKernels kVectorKernels;
const VectorKernels kVectorKernels = {rms_norm, add_rows, glu, rope, store_key_value, attend};

}  // namespace lilliput::kernels::LILLIPUT_ISA
