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

// The same of one input.
template <typename Body>
inline void map(const float* x, std::int64_t width, float* y, Body body) {
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(y + i, body(load(x + i)));
  if (i == width) return;
  float rest[kLanes] = {};
  for (std::int64_t j = i; j < width; ++j) rest[j - i] = x[j];
  store(rest, body(load(rest)));
  for (std::int64_t j = i; j < width; ++j) y[j] = rest[j - i];
}

// Adds body(lanes of x, sum so far) over a row, four sums side by side, as each addition waits for
// the one before. What fills up the last lanes is `pad`.
template <typename Body>
float row_sum(const float* x, std::int64_t width, float pad, Body body) {
  constexpr int kApart = 4;
  Lanes sums[kApart] = {zero(), zero(), zero(), zero()};
  std::int64_t i = 0;
  for (; i + kApart * kLanes <= width; i += kApart * kLanes) {
    for (int j = 0; j < kApart; ++j) sums[j] = body(load(x + i + j * kLanes), sums[j]);
  }
  for (; i + kLanes <= width; i += kLanes) sums[0] = body(load(x + i), sums[0]);
  if (i < width) {
    float rest[kLanes];
    for (int j = 0; j < kLanes; ++j) rest[j] = i + j < width ? x[i + j] : pad;
    sums[1] = body(load(rest), sums[1]);
  }
  return sum(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

void rms_norm(const float* x, const float* weight, float epsilon, std::int64_t width, float* y) {
  const float squares =
      row_sum(x, width, 0.0f, [](Lanes v, Lanes sum) { return multiply_add(v, v, sum); });
  const float factor = 1.0f / std::sqrt(squares / static_cast<float>(width) + epsilon);
  map2(x, weight, width, y,
       [factor](Lanes v, Lanes w) { return multiply(multiply(v, broadcast(factor)), w); });
}

void add_rows(const float* a, const float* b, std::int64_t width, float* y) {
  map2(a, b, width, y, [](Lanes u, Lanes v) { return add(u, v); });
}

void layer_norm(const float* x, const float* weight, const float* bias, float epsilon,
                std::int64_t width, float* y) {
  const float count = static_cast<float>(width);
  const float mean =
      row_sum(x, width, 0.0f, [](Lanes v, Lanes sum) { return add(v, sum); }) / count;
  const Lanes means = broadcast(mean);
  // Two passes: the mean of squares less the square of the mean cancels where the mean is large.
  const float squares = row_sum(x, width, mean, [means](Lanes v, Lanes sum) {
    const Lanes distance = subtract(v, means);
    return multiply_add(distance, distance, sum);
  });
  const Lanes factor = broadcast(1.0f / std::sqrt(squares / count + epsilon));
  const auto scaled = [means, factor](Lanes v, Lanes w) {
    return multiply(multiply(subtract(v, means), factor), w);
  };
  if (bias == nullptr) return map2(x, weight, width, y, scaled);
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    store(y + i, add(scaled(load(x + i), load(weight + i)), load(bias + i)));
  }
  if (i == width) return;
  map2(x + i, weight + i, width - i, y + i, scaled);
  for (; i < width; ++i) y[i] += bias[i];
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

// 0.5 x (1 + erf(x / sqrt(2))) = max(x, 0) - |x| (0.5 - |x| Q), Q a polynomial in t = 2 (x / 5.2)² -
// 1 that keeps the bracket, the normal distribution's tail, within 1.7e-7; beyond 5.2, where that is
// below 1e-7, the tail is 0. A quotient and an exponential would take twice the time.
inline Lanes gelu(Lanes x) {
  constexpr float kEnd = 5.2f;
  const Lanes size = maximum(subtract(zero(), x), x);
  const Lanes within = minimum(broadcast(kEnd), size);
  const Lanes t =
      multiply_add(multiply(within, within), broadcast(2.0f / (kEnd * kEnd)), broadcast(-1.0f));
  Lanes q = broadcast(-0.000481276569f);
  for (const float coefficient :
       {0.00126851106f, -0.00122149533f, 0.00180012244f, -0.00478903716f, 0.00855996832f,
        -0.0125051225f, 0.0179547872f, -0.0247236285f, 0.0319899581f, -0.0399298184f, 0.0500245206f,
        -0.0677436665f, 0.135949999f}) {
    q = multiply_add(q, t, broadcast(coefficient));
  }
  const Lanes tail = multiply_add(subtract(zero(), within), q, broadcast(0.5f));
  return subtract(maximum(zero(), x),
                  zero_where_below(subtract(broadcast(kEnd), size), 0.0f, multiply(within, tail)));
}

inline Lanes relu(Lanes x) { return maximum(zero(), x); }

// 1 - 2 / (e^(2x) + 1)
inline Lanes hyperbolic_tangent(Lanes x) {
  const Lanes e = exponential(add(x, x));
  return subtract(broadcast(1.0f), divide(broadcast(2.0f), add(e, broadcast(1.0f))));
}

// Calls body(function on lanes) for the activation.
template <typename Body>
inline void with_activation(Activation activation, Body body) {
  switch (activation) {
    case Activation::silu:
      return body([](Lanes x) { return silu(x); });
    case Activation::gelu:
      return body([](Lanes x) { return gelu(x); });
    case Activation::gelu_tanh:
      return body([](Lanes x) { return gelu_tanh(x); });
    case Activation::relu:
      return body([](Lanes x) { return relu(x); });
    case Activation::tanh:
      return body([](Lanes x) { return hyperbolic_tangent(x); });
  }
}

void glu(const float* gate, const float* up, Activation activation, std::int64_t width, float* y) {
  with_activation(activation, [&](auto function) {
    map2(gate, up, width, y, [&](Lanes g, Lanes u) { return multiply(function(g), u); });
  });
}

void activate(const float* x, Activation activation, std::int64_t width, float* y) {
  with_activation(activation, [&](auto function) { map(x, width, y, function); });
}

void scale_rows(const float* x, float factor, std::int64_t width, float* y) {
  map(x, width, y, [factor](Lanes v) { return multiply(v, broadcast(factor)); });
}

void softcap(const float* x, float limit, std::int64_t width, float* y) {
  map(x, width, y, [limit](Lanes v) {
    return multiply(broadcast(limit), hyperbolic_tangent(multiply(v, broadcast(1.0f / limit))));
  });
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
const VectorKernels kVectorKernels = {
    rms_norm,        layer_norm, add_rows,     activate,     scale_rows,         softcap, glu, rope,
    store_key_value, attend,     attend_words, attend_whole, attend_whole_words, rotate};

}  // namespace lilliput::kernels::LILLIPUT_ISA
