// SPDX-License-Identifier: Apache-2.0
// Checks the kernels of one instruction set against the scalar ones, on a machine that need not have
// Python: integers bit for bit, floats within bounds derived from the operations that round.
//
//   kernel_conformance [SET]     SET: by default the best this machine can run
// Prints a line for each check; exits with 1 if one fails, with 2 if this machine cannot run SET.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "formats/format.h"
#include "kernels/column_loops.h"
#include "kernels/encode.h"
#include "kernels/integer_matmul.h"
#include "kernels/matmul.h"
#include "kernels/probe.h"
#include "kernels/vector_kernels.h"

namespace {

namespace formats = lilliput::formats;
namespace kernels = lilliput::kernels;
using formats::FormatId;
using kernels::Isa;

constexpr double kUnit = 0x1p-24;  // of rounding to nearest in float32
// Of `exponential` in lanes.h, twice: both sides err.
constexpr double kExponential = 6e-7;

// ---- what checks report ----

struct Tally {
  int checks = 0;
  int failures = 0;

  // worst: the largest error as a share of its bound; 0 for equal bits.
  void take(const std::string& what, double worst) {
    const bool is_good = worst <= 1.0;
    ++checks;
    failures += is_good ? 0 : 1;
    std::printf("%s  %-48s %.3g\n", is_good ? "ok  " : "FAIL", what.c_str(), worst);
  }
  void take_bytes(const std::string& what, const void* a, const void* b, std::size_t n) {
    const auto* first = static_cast<const std::uint8_t*>(a);
    const auto* second = static_cast<const std::uint8_t*>(b);
    const auto [place, other] = std::mismatch(first, first + n, second);
    const bool is_equal = place == first + n;
    if (!is_equal) {
      std::printf("      byte %td of %zu: %d, %d\n", place - first, n, *place, *other);
    }
    take(what + ", bits", is_equal ? 0.0 : HUGE_VAL);
  }
};

double share(double error, double bound) {
  if (error == 0.0) return 0.0;
  return error <= bound ? error / bound : (bound > 0.0 ? error / bound : HUGE_VAL);
}

// ---- numbers ----

std::mt19937_64 random_bits{20261122};

// Standard normal, the sum of twelve uniform numbers: the same on every machine.
float normal() {
  double sum = -6.0;
  for (int i = 0; i < 12; ++i) sum += static_cast<double>(random_bits() >> 11) * 0x1p-53;
  return static_cast<float>(sum);
}
int uniform(int low, int high) {
  return low + static_cast<int>(random_bits() % static_cast<std::uint64_t>(high - low + 1));
}
std::vector<float> normals(std::int64_t n) {
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = normal();
  return values;
}

// 64-byte aligned memory, filled with bytes that are no plausible result.
class Memory {
 public:
  explicit Memory(std::size_t bytes)
      : bytes_(bytes), data_(static_cast<std::uint8_t*>(::operator new(bytes + 1, kAlign))) {
    std::memset(data_.get(), 0xcd, bytes);
  }
  std::uint8_t* data() const { return data_.get(); }
  std::size_t size() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(std::uint8_t* p) const { ::operator delete(p, kAlign); }
  };
  std::size_t bytes_;
  std::unique_ptr<std::uint8_t, Free> data_;
};

// ---- matrices ----

struct StoredMatrix {
  FormatId format;
  std::int64_t rows;
  std::int64_t columns;
  std::vector<std::uint8_t> blocks;
  std::vector<float> values;

  kernels::Weight weight() const {
    return {format, rows, columns, blocks.data(), static_cast<std::int64_t>(blocks.size()) / rows};
  }
};

// Blocks of random bytes whose values are of ordinary size.
StoredMatrix random_matrix(FormatId format, std::int64_t rows, std::int64_t columns) {
  const formats::FormatTraits& traits = formats::traits(format);
  const std::int64_t n = rows * columns / traits.block_size;
  StoredMatrix matrix{format, rows, columns, {}, {}};
  matrix.blocks.resize(static_cast<std::size_t>(n * traits.block_bytes));
  matrix.values.resize(static_cast<std::size_t>(rows * columns));
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint8_t* block = matrix.blocks.data() + i * traits.block_bytes;
    float* values = matrix.values.data() + i * traits.block_size;
    for (bool is_ordinary = false; !is_ordinary;) {
      for (std::int64_t j = 0; j < traits.block_bytes; ++j) {
        block[j] = static_cast<std::uint8_t>(random_bits() >> 7);
      }
      traits.decode(block, values, 1);
      float largest = 0.0f;
      bool is_finite = true;
      for (std::int64_t j = 0; j < traits.block_size; ++j) {
        is_finite = is_finite && std::isfinite(values[j]);
        largest = std::max(largest, std::abs(values[j]));
      }
      is_ordinary = is_finite && largest >= 0x1p-6f && largest <= 16.0f;
    }
  }
  return matrix;
}

// Normal numbers, one large channel, one group of zeros.
std::vector<float> random_inputs(std::int64_t tokens, std::int64_t columns) {
  std::vector<float> x = normals(tokens * columns);
  for (std::int64_t token = 0; token < tokens; ++token) {
    x[token * columns + 5] *= 20.0f;
    std::fill_n(x.begin() + token * columns + 64, std::min<std::int64_t>(32, columns - 64), 0.0f);
  }
  return x;
}

enum class Layout { stored, repacked, exact };
constexpr const char* kLayoutNames[] = {"stored", "repacked", "exact inputs"};

const kernels::MatmulKernel* kernel_of(Isa isa, FormatId format, Layout layout) {
  if (layout == Layout::repacked) return kernels::interleaved_kernel(format, isa);
  return &kernels::matmul_kernel(format, isa, layout == Layout::exact);
}

// y [tokens][rows]
std::vector<float> product(const kernels::MatmulKernel& kernel, const StoredMatrix& matrix,
                           const std::vector<float>& x, std::int64_t tokens) {
  kernels::Weight weight = matrix.weight();
  const std::int64_t padded = kernels::round_up(matrix.rows, kernels::kMostLanes);
  const bool is_interleaved = kernel.interleave != nullptr;
  const std::int64_t row_bytes =
      is_interleaved ? kernel.interleaved_row_bytes(matrix.columns) : std::int64_t{0};
  const Memory interleaved(static_cast<std::size_t>(padded * row_bytes) +
                           kernels::kInterleavedMargin);
  if (is_interleaved) {
    kernel.interleave(weight, 0, matrix.rows, interleaved.data());
    weight.blocks = interleaved.data();
    weight.row_bytes = row_bytes;
    weight.is_interleaved = true;
  }
  const Memory prepared(kernel.prepared_bytes(tokens, matrix.columns));
  kernel.prepare(x.data(), matrix.columns, tokens, matrix.columns, 0, tokens, prepared.data());
  const Memory scratch(kernel.scratch_bytes(matrix.columns, tokens));
  std::vector<float> y(static_cast<std::size_t>(tokens * matrix.rows), NAN);
  // In two parts, as two threads would.
  const std::int64_t half = std::min(matrix.rows, kernel.row_tile);
  kernel.multiply(weight, prepared.data(), tokens, y.data(), matrix.rows, 0, half, scratch.data());
  if (half < matrix.rows) {
    kernel.multiply(weight, prepared.data(), tokens, y.data(), matrix.rows, half, matrix.rows,
                    scratch.data());
  }
  return y;
}

bool has_minimums(FormatId format) {
  return format == FormatId::q4_1 || format == FormatId::q5_1 || format == FormatId::q2_k ||
         format == FormatId::q4_k || format == FormatId::q5_k;
}

// What the terms of a dot product amount to in size. Codes of inputs lie within a fiftieth of the
// largest of 32 inputs from them; minimums, which are summed apart from codes times scales, are at
// most 3.5 times the largest weight of 32 and count in both.
double size_of_terms(const StoredMatrix& matrix, const std::vector<float>& x, std::int64_t row,
                     std::int64_t token) {
  const float* weights = matrix.values.data() + row * matrix.columns;
  const float* inputs = x.data() + token * matrix.columns;
  double sum = 0.0;
  for (std::int64_t first = 0; first < matrix.columns; first += 32) {
    double largest_weight = 0.0;
    double largest_input = 0.0;
    const std::int64_t end = std::min(first + 32, matrix.columns);
    for (std::int64_t i = first; i < end; ++i) {
      largest_weight = std::max(largest_weight, std::abs(static_cast<double>(weights[i])));
      largest_input = std::max(largest_input, std::abs(static_cast<double>(inputs[i])));
    }
    const double minimum = has_minimums(matrix.format) ? 7.0 * largest_weight : 0.0;
    for (std::int64_t i = first; i < end; ++i) {
      sum += (std::abs(weights[i]) + minimum) * (std::abs(inputs[i]) + 0.02 * largest_input);
    }
  }
  return sum;
}

// What codes that one side rounds otherwise are worth, as a share of the terms: words, which one side
// alone has, and sums of inputs of formats with integer scales, taken in another order (other lanes).
double code_rounding(const kernels::MatmulKernel& kernel, Isa isa) {
  if (kernel.input == kernels::InputLayout::halves) return 0x1p-10;
  return isa != Isa::neon_dotprod && kernel.input == kernels::InputLayout::int8_scaled ? 0x1p-7 : 0;
}

void check_product(Isa isa, const StoredMatrix& matrix, Layout layout, std::int64_t tokens,
                   Tally& tally) {
  const kernels::MatmulKernel* plain = kernel_of(Isa::scalar, matrix.format, layout);
  const kernels::MatmulKernel* fast = kernel_of(isa, matrix.format, layout);
  const std::string name = "matmul " + std::string(formats::traits(matrix.format).name) + " " +
                           kLayoutNames[static_cast<int>(layout)] + " x" + std::to_string(tokens);
  if ((plain == nullptr) != (fast == nullptr)) return tally.take(name + ", one has none", HUGE_VAL);
  if (plain == nullptr) return;
  const std::vector<float> x = random_inputs(tokens, matrix.columns);
  const std::vector<float> wanted = product(*plain, matrix, x, tokens);
  const std::vector<float> found = product(*fast, matrix, x, tokens);
  // Each side rounds each product and sum, which integers do twice in 16 columns; in the end, a few.
  const double columns = static_cast<double>(matrix.columns);
  const double roundings =
      plain->input == kernels::InputLayout::f32 ? 2.0 * columns : columns / 4.0 + 8.0;
  const double code = code_rounding(*fast, isa);
  double worst = 0.0;
  for (std::int64_t token = 0; token < tokens; ++token) {
    for (std::int64_t row = 0; row < matrix.rows; ++row) {
      const std::size_t i = static_cast<std::size_t>(token * matrix.rows + row);
      const double bound = (roundings * kUnit + code) * size_of_terms(matrix, x, row, token);
      const double error = std::abs(static_cast<double>(wanted[i]) - found[i]);
      worst = std::max(worst, std::isfinite(found[i]) ? share(error, bound) : HUGE_VAL);
    }
  }
  tally.take(name, worst);
}

void check_interleaved_bytes(const StoredMatrix& matrix, Isa isa, Tally& tally) {
  const kernels::MatmulKernel* plain = kernels::interleaved_kernel(matrix.format, Isa::scalar);
  const kernels::MatmulKernel* fast = kernels::interleaved_kernel(matrix.format, isa);
  if (plain == nullptr || isa != Isa::neon_dotprod) return;  // other sets have other lanes
  const auto bytes =
      static_cast<std::size_t>(plain->interleaved_row_bytes(matrix.columns) * matrix.rows);
  const Memory a(bytes + kernels::kInterleavedMargin);
  const Memory b(bytes + kernels::kInterleavedMargin);
  plain->interleave(matrix.weight(), 0, matrix.rows, a.data());
  fast->interleave(matrix.weight(), 0, matrix.rows, b.data());
  tally.take_bytes("repack " + std::string(formats::traits(matrix.format).name), a.data(), b.data(),
                   bytes);
}

void check_matrices(Isa isa, Tally& tally) {
#define LILLIPUT_ID(name) FormatId::name,
  for (const FormatId format : {LILLIPUT_FORMATS(LILLIPUT_ID)}) {
#undef LILLIPUT_ID
    // Ragged: the last segment, the last tile of rows.
    const std::int64_t columns = formats::traits(format).block_size == 256 ? 512 : 448;
    const StoredMatrix matrix = random_matrix(format, 76, columns);
    check_interleaved_bytes(matrix, isa, tally);
    for (const Layout layout : {Layout::stored, Layout::repacked, Layout::exact}) {
      for (const std::int64_t tokens : {1, 2, 3, 4, 7, 21}) {
        check_product(isa, matrix, layout, tokens, tally);
      }
    }
  }
}

// ---- integer linear layers ----

struct IntegerCase {
  bool is_symmetric, is_static, has_weight_zero_points, is_bfloat16, has_bias;
  std::int64_t tokens, weight_groups, input_groups, columns;
};

struct IntegerMatrix {
  std::vector<std::int8_t> panels;
  std::vector<float> scale;
  std::vector<std::int32_t> zero_point;
};

std::uint16_t upper_half(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<std::uint16_t>(bits >> 16);
}

IntegerMatrix random_integers(const IntegerCase& c, std::int64_t rows) {
  const std::int64_t panels = kernels::round_up(rows, kernels::kRowPadding) / kernels::kPanelRows;
  const std::int64_t quads = (c.columns + 3) / 4;
  IntegerMatrix matrix;
  matrix.panels.assign(static_cast<std::size_t>(panels * quads * 64), 0);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < c.columns; ++column) {
      const std::int64_t line = row / 16 * quads + column / 4;
      matrix.panels[line * 64 + row % 16 * 4 + column % 4] =
          static_cast<std::int8_t>(uniform(-128, 127));
    }
  }
  for (std::int64_t i = 0; i < panels * c.weight_groups * 16; ++i) {
    matrix.scale.push_back(0.01f + 0.001f * static_cast<float>(uniform(0, 9)));
    matrix.zero_point.push_back(uniform(-128, 127));
  }
  return matrix;
}

std::vector<std::uint8_t> integer_product(Isa isa, const IntegerCase& c, std::int64_t rows,
                                          const IntegerMatrix& matrix,
                                          const std::vector<std::uint8_t>& x,
                                          const std::vector<float>& bias) {
  const kernels::IntegerKernel& kernel = kernels::integer_kernel(isa);
  const std::int64_t groups = std::max(c.weight_groups, c.input_groups);
  const kernels::NumberType type =
      c.is_bfloat16 ? kernels::NumberType::bf16 : kernels::NumberType::f32;
  const kernels::IntegerWeight weight{
      rows,
      c.columns,
      c.columns / c.weight_groups,
      c.weight_groups,
      matrix.panels.data(),
      matrix.scale.data(),
      c.has_weight_zero_points ? matrix.zero_point.data() : nullptr};
  // Symmetric codes 1..255 around 128, others 0..255.
  const kernels::IntegerInput input{c.is_symmetric,
                                    c.is_static,
                                    c.is_symmetric ? 127.0f : 255.0f,
                                    c.is_symmetric ? 1.0f : 0.0f,
                                    255.0f,
                                    c.is_static ? 0.05f : 0.0f,
                                    c.is_symmetric ? 128.0f : 100.0f,
                                    c.input_groups};
  const std::int64_t padded = kernels::round_up(rows, kernels::kRowPadding);
  std::vector<std::int32_t> sums(static_cast<std::size_t>(padded * groups));
  kernels::integer_sums(weight, groups, sums.data());
  const Memory prepared(kernel.prepared_bytes(c.tokens, c.columns, groups));
  kernel.prepare({x.data(), type, c.tokens, c.columns, c.columns}, input, groups, 0, c.tokens,
                 prepared.data());
  std::vector<std::uint8_t> y(static_cast<std::size_t>(c.tokens * rows) * (c.is_bfloat16 ? 2 : 4));
  kernel.multiply(weight, input, sums.data(), prepared.data(), c.tokens,
                  {y.data(), type, rows, c.has_bias ? bias.data() : nullptr}, 0, rows);
  return y;
}

void check_integers(Isa isa, Tally& tally) {
  constexpr std::int64_t kRows = 75;
  const IntegerCase cases[] = {{true, false, false, false, false, 1, 1, 1, 100},
                               {false, false, false, false, true, 5, 1, 1, 100},
                               {false, false, true, false, true, 14, 1, 1, 131},
                               {true, true, true, false, false, 26, 1, 1, 128},
                               {false, true, false, true, true, 3, 1, 1, 60},
                               {false, false, true, true, false, 9, 4, 1, 128},
                               {false, false, true, false, true, 13, 4, 4, 256},
                               {true, false, false, false, true, 2, 2, 2, 192},
                               {false, false, true, false, false, 4, 1, 2, 128}};
  for (const IntegerCase& c : cases) {
    const IntegerMatrix matrix = random_integers(c, kRows);
    const std::vector<float> values = normals(c.tokens * c.columns);
    std::vector<std::uint8_t> x(values.size() * (c.is_bfloat16 ? 2 : 4));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::uint16_t half = upper_half(values[i]);
      if (c.is_bfloat16) std::memcpy(x.data() + 2 * i, &half, 2);
      if (!c.is_bfloat16) std::memcpy(x.data() + 4 * i, &values[i], 4);
    }
    const std::vector<float> bias = normals(kRows);
    const auto wanted = integer_product(Isa::scalar, c, kRows, matrix, x, bias);
    const auto found = integer_product(isa, c, kRows, matrix, x, bias);
    tally.take_bytes("integers x" + std::to_string(c.tokens) + ", " + std::to_string(c.columns) +
                         " columns, groups " + std::to_string(c.weight_groups) + " and " +
                         std::to_string(c.input_groups),
                     wanted.data(), found.data(), wanted.size());
  }
}

// ---- rows of floats ----

using RowFunction =
    std::function<void(const kernels::VectorKernels&, const float*, std::int64_t, float*)>;

// bound: of the error of one number, relative to the largest of the row's inputs and outputs or 1.
void check_rows(Isa isa, const std::string& name, double bound, const RowFunction& run,
                Tally& tally) {
  double worst = 0.0;
  for (const std::int64_t width : {1, 16, 37, 160}) {
    const std::vector<float> x = normals(width);
    std::vector<float> wanted(x.size(), NAN);
    std::vector<float> found(x.size(), NAN);
    run(kernels::vector_kernels(Isa::scalar), x.data(), width, wanted.data());
    run(kernels::vector_kernels(isa), x.data(), width, found.data());
    double size = 1.0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      size = std::max(
          {size, std::abs(static_cast<double>(x[i])), std::abs(static_cast<double>(wanted[i]))});
    }
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double error = std::abs(static_cast<double>(wanted[i]) - found[i]);
      worst = std::max(worst, std::isfinite(found[i]) ? share(error, bound * size) : HUGE_VAL);
    }
  }
  tally.take(name, worst);
}

void check_vectors(Isa isa, Tally& tally) {
  using kernels::Activation;
  using kernels::VectorKernels;
  const std::vector<float> other = normals(160);
  const float* w = other.data();
  // Sums of up to 160 squares.
  constexpr double kNorm = 4 * 160 * kUnit;
  check_rows(
      isa, "rms_norm", kNorm,
      [w](const VectorKernels& k, const float* x, std::int64_t n, float* y) {
        k.rms_norm(x, w, 1e-5f, n, y);
      },
      tally);
  check_rows(
      isa, "layer_norm", kNorm,
      [w](const VectorKernels& k, const float* x, std::int64_t n, float* y) {
        k.layer_norm(x, w, w, 1e-2f, n, y);
      },
      tally);
  check_rows(
      isa, "add", 0.0,
      [w](const VectorKernels& k, const float* x, std::int64_t n, float* y) { k.add(x, w, n, y); },
      tally);
  check_rows(
      isa, "scale", 0.0,
      [](const VectorKernels& k, const float* x, std::int64_t n, float* y) {
        k.scale(x, 0.3f, n, y);
      },
      tally);
  check_rows(
      isa, "softcap", 30 * 2 * kExponential,
      [](const VectorKernels& k, const float* x, std::int64_t n, float* y) {
        k.softcap(x, 30.0f, n, y);
      },
      tally);
  for (const auto& [name, activation] :
       {std::pair{"silu", Activation::silu}, std::pair{"gelu", Activation::gelu},
        std::pair{"gelu_tanh", Activation::gelu_tanh}, std::pair{"relu", Activation::relu},
        std::pair{"tanh", Activation::tanh}}) {
    const double bound = activation == Activation::relu ? 0.0 : 2 * kExponential + 16 * kUnit;
    check_rows(
        isa, name, bound,
        [=](const VectorKernels& k, const float* x, std::int64_t n, float* y) {
          k.activate(x, activation, n, y);
        },
        tally);
  }
  check_rows(
      isa, "glu", 8 * kExponential,
      [w](const VectorKernels& k, const float* x, std::int64_t n, float* y) {
        k.glu(x, w, Activation::silu, n, y);
      },
      tally);
  for (const auto style : {kernels::RopeStyle::adjacent, kernels::RopeStyle::halves}) {
    check_rows(
        isa, "rope", 0.0,
        [=](const VectorKernels& k, const float* x, std::int64_t n, float* y) {
          std::copy_n(x, n, y);
          k.rope(y, 1, n, w, w + 80, n / 2, style);
        },
        tally);
  }
}

// ---- attention ----

struct AttentionCase {
  std::int64_t head_dim, tokens, group, past, window;
  float softcap;
};

struct Cache {
  Memory keys, values;
};

Cache filled_cache(Isa isa, kernels::CacheFormat format, std::int64_t head_dim, std::int64_t count,
                   const std::vector<float>& keys, const std::vector<float>& values) {
  const kernels::RunBytes bytes = kernels::run_bytes(format, head_dim);
  // Whole blocks: what attention asks for early.
  const auto runs =
      static_cast<std::size_t>(kernels::round_up(count, kernels::kKeyBlock) / kernels::kKeyGroup);
  Cache cache{Memory(bytes.keys * runs), Memory(bytes.values * runs)};
  std::memset(cache.keys.data(), 0, cache.keys.size());
  std::memset(cache.values.data(), 0, cache.values.size());
  for (std::int64_t i = 0; i < count; ++i) {
    kernels::vector_kernels(isa).store_key_value({cache.keys.data(), cache.values.data()}, format,
                                                 head_dim, i, keys.data() + i * head_dim,
                                                 values.data() + i * head_dim);
  }
  return cache;
}

struct Attended {
  std::vector<float> maximum, sum, weighted;
};

enum class Arithmetic : std::uint8_t { floats, codes, words };

Attended attended(Isa isa, kernels::CacheFormat format, const AttentionCase& c,
                  const std::vector<float>& q, const Cache& cache, Arithmetic arithmetic) {
  const std::int64_t rows = c.tokens * c.group;
  const std::int64_t padded = kernels::round_up(c.head_dim, kernels::kKeyGroup);
  const std::size_t words = kernels::word_attention_floats(c.tokens, c.group, c.head_dim);
  const Memory scratch((kernels::attention_scratch_floats(rows, c.head_dim) + words) * 4);
  Attended result{std::vector<float>(rows, NAN), std::vector<float>(rows, NAN),
                  std::vector<float>(rows * padded, NAN)};
  kernels::AttentionTask task{};
  task.q = q.data();
  task.q_stride = c.group * c.head_dim;
  task.tokens = c.tokens;
  task.group = c.group;
  task.head_dim = c.head_dim;
  task.first_position = c.past;
  task.key_end = c.past + c.tokens;
  task.window = c.window;
  task.causal = true;
  task.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  task.softcap = c.softcap;
  task.cache = {cache.keys.data(), cache.values.data()};
  const kernels::AttentionPartial partial{result.maximum.data(), result.sum.data(),
                                          result.weighted.data()};
  const kernels::VectorKernels& kernels = kernels::vector_kernels(isa);
  if (arithmetic == Arithmetic::words)
    kernels.attend_words(task, partial, scratch.as<float>());
  else
    kernels.attend(task, format, partial, scratch.as<float>());
  return result;
}

// Outputs are means of values with positive weights: an error of every weight by a share e moves
// them by at most 2 e times the largest value. Scores err by their roundings times their terms;
// codes of probabilities by a step of 2^-14 of a block's largest, where one rounds the other way;
// words by a step of 1 / 32767 of a norm, or of a sum of weights.
double attention_error(const AttentionCase& c, Arithmetic arithmetic, const Attended& a,
                       const Attended& b) {
  const bool has_codes = arithmetic == Arithmetic::codes;
  const std::int64_t rows = c.tokens * c.group;
  const std::int64_t padded = kernels::round_up(c.head_dim, kernels::kKeyGroup);
  const double dims = static_cast<double>(c.head_dim);
  const double keys = static_cast<double>(c.past + c.tokens);
  // Terms of a score: normal numbers below 6 in size, times 1 / sqrt(dims).
  double e = 2 * dims * kUnit * 36.0 * std::sqrt(dims) + kExponential + 2 * keys * kUnit;
  if (has_codes) e += keys * 0x1p-14;
  if (arithmetic == Arithmetic::words) e += (36.0 * dims + 64.0) / 32767;
  double worst = 0.0;
  for (std::int64_t row = 0; row < rows; ++row) {
    worst = std::max(worst, share(std::abs(a.maximum[row] - b.maximum[row]), e));
    worst = std::max(worst, share(std::abs(a.sum[row] - b.sum[row]), e * a.sum[row]));
    for (std::int64_t d = 0; d < c.head_dim; ++d) {
      const double wanted = a.weighted[row * padded + d] / a.sum[row];
      const double found = b.weighted[row * padded + d] / b.sum[row];
      const double error = std::isfinite(found) ? std::abs(wanted - found) : HUGE_VAL;
      worst = std::max(worst, share(error, 2 * e * 6.0 * std::sqrt(has_codes ? dims : 1.0)));
    }
  }
  return worst;
}

void check_attention(Isa isa, Tally& tally) {
  const char* const names[] = {"f16", "f32", "q8_0", "q4_0", "q8_0_plain", "q4_0_plain"};
  const AttentionCase cases[] = {{64, 1, 4, 150, 0, 0.0f},
                                 {80, 3, 5, 40, 0, 0.0f},
                                 {40, 9, 2, 130, 70, 0.0f},
                                 {128, 2, 1, 33, 0, 20.0f}};
  for (std::size_t i = 0; i < std::size(names); ++i) {
    const auto format = static_cast<kernels::CacheFormat>(i);  // in their order
    for (const AttentionCase& c : cases) {
      const std::int64_t count = c.past + c.tokens;
      const std::vector<float> keys = normals(count * c.head_dim);
      const std::vector<float> values = normals(count * c.head_dim);
      const std::vector<float> q = normals(c.tokens * c.group * c.head_dim);
      const Cache plain = filled_cache(Isa::scalar, format, c.head_dim, count, keys, values);
      const Cache fast = filled_cache(isa, format, c.head_dim, count, keys, values);
      const auto title = "attention " + std::string(names[i]) + " " + std::to_string(c.head_dim);
      if (isa == Isa::neon_dotprod) {  // others may keep keys with 128 added
        tally.take_bytes(title + " keys", plain.keys.data(), fast.keys.data(), plain.keys.size());
        tally.take_bytes(title + " values", plain.values.data(), fast.values.data(),
                         plain.values.size());
      }
      const auto compare = [&](const std::string& what, Arithmetic way) {
        const Attended wanted = attended(Isa::scalar, format, c, q, plain, way);
        const Attended found = attended(isa, format, c, q, fast, way);
        const std::string rows = " x" + std::to_string(c.tokens * c.group);
        tally.take(what + rows, attention_error(c, way, wanted, found));
      };
      compare(title, kernels::code_bits(format) != 0 ? Arithmetic::codes : Arithmetic::floats);
      if (format == kernels::CacheFormat::f16) compare(title + " in words", Arithmetic::words);
    }
  }
}

// Every query sees every key; errors as in attention_error.
void check_whole_attention(Isa isa, Tally& tally) {
  for (const auto& [head_dim, tokens] : {std::pair{32, 17}, std::pair{64, 90}}) {
    const auto size = static_cast<std::size_t>(tokens * head_dim);
    const std::vector<float> q = normals(tokens * head_dim);
    const std::vector<float> k = normals(tokens * head_dim);
    const std::vector<float> v = normals(tokens * head_dim);
    std::vector<float> results[2];
    for (const bool is_plain : {true, false}) {
      std::vector<float>& out = results[is_plain ? 0 : 1];
      out.assign(size, NAN);
      kernels::WholeAttention task{};
      task.q = q.data();
      task.k = k.data();
      task.v = v.data();
      task.out = out.data();
      task.q_stride = task.kv_stride = task.head_dim = head_dim;
      task.queries = task.keys = tokens;
      task.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
      const Memory scratch(kernels::whole_attention_floats(tokens, tokens, head_dim) * 4);
      kernels::vector_kernels(is_plain ? Isa::scalar : isa).attend_whole(task, scratch.as<float>());
    }
    const double dims = head_dim;
    const double e = 72 * dims * std::sqrt(dims) * kUnit + kExponential + 2 * tokens * kUnit;
    double worst = 0.0;
    for (std::size_t i = 0; i < size; ++i) {
      const double error = std::abs(static_cast<double>(results[0][i]) - results[1][i]);
      worst = std::max(worst, std::isfinite(results[1][i]) ? share(error, 12 * e) : HUGE_VAL);
    }
    tally.take("attention without a cache " + std::to_string(head_dim), worst);
  }
}

// ---- encoders and column loops ----

void check_encoders(Isa isa, Tally& tally) {
  constexpr std::int64_t kRows = 2;
  constexpr std::int64_t kColumns = 512;
  const std::vector<float> weights = normals(kRows * kColumns);
  std::vector<float> importance(kColumns);
  for (float& value : importance) value = 0.25f + std::abs(normal());
#define LILLIPUT_ID(name) FormatId::name,
  for (const FormatId format : {LILLIPUT_FORMATS(LILLIPUT_ID)}) {
#undef LILLIPUT_ID
    const kernels::EncodeRows plain = kernels::row_encoder(format, Isa::scalar);
    if (plain == nullptr) continue;
    const formats::FormatTraits& traits = formats::traits(format);
    const std::size_t bytes =
        static_cast<std::size_t>(kRows * kColumns / traits.block_size * traits.block_bytes);
    std::vector<std::uint8_t> wanted(bytes);
    std::vector<std::uint8_t> found(bytes, 1);
    const kernels::RowsToEncode rows{weights.data(), importance.data(), kRows, kColumns, 2.0f};
    plain(rows, wanted.data());
    kernels::row_encoder(format, isa)(rows, found.data());
    tally.take_bytes("encode " + std::string(traits.name), wanted.data(), found.data(), bytes);
  }
}

void check_vector_rounding(Isa isa, Tally& tally) {
#define LILLIPUT_ID(name) FormatId::name,
  for (const FormatId format : {LILLIPUT_FORMATS(LILLIPUT_ID)}) {
#undef LILLIPUT_ID
    const kernels::VectorRounder plain = kernels::vector_rounder(format, Isa::scalar);
    if (plain.round == nullptr) continue;
    constexpr std::int64_t kVectors = 36;
    const auto unit = static_cast<std::int64_t>(plain.unit);
    // Numbers of a few bits, so that sums round nowhere, fused or not.
    std::vector<float> y(static_cast<std::size_t>(unit * kVectors));
    for (float& value : y) value = static_cast<float>(uniform(-64, 64)) / 16.0f;
    std::vector<float> metric(static_cast<std::size_t>(unit * unit));
    for (std::int64_t i = 0; i < unit; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) {
        const float entry = i == j ? 2.0f : static_cast<float>(uniform(-1, 1)) / 8.0f;
        metric[i * unit + j] = metric[j * unit + i] = entry;
      }
    }
    std::vector<std::int32_t> wanted(y.size(), -1);
    std::vector<std::int32_t> found(y.size(), -1);
    const kernels::VectorsToRound vectors{y.data(), kVectors, metric.data()};
    plain.round(vectors, 0, kVectors, wanted.data());
    kernels::vector_rounder(format, isa).round(vectors, 0, kVectors, found.data());
    tally.take_bytes("nearest vectors " + std::string(formats::traits(format).name), wanted.data(),
                     found.data(), wanted.size() * sizeof(std::int32_t));
  }
}

struct ColumnResult {
  std::vector<std::uint8_t> codes;
  std::vector<float> moves;
};

// Numbers of a few bits again: what is decided does not depend on fused roundings.
ColumnResult decided_columns(Isa isa, bool is_feedback, bool is_run, std::uint64_t seed) {
  constexpr std::int64_t kRows = 70;
  constexpr std::int64_t kColumns = 37;
  random_bits.seed(seed);
  const auto eighths = [](std::int64_t n, int most) {
    std::vector<float> values(static_cast<std::size_t>(n));
    for (float& value : values) value = static_cast<float>(uniform(-most, most)) / 8.0f;
    return values;
  };
  std::vector<float> matrix(kColumns * kColumns, 0.0f);
  for (float& entry : matrix) {
    if (uniform(0, 7) == 0) entry = static_cast<float>(uniform(-1, 1)) / 4.0f;
  }
  std::vector<float> panels(kernels::panel_floats(kColumns), 0.0f);
  kernels::pack_panels({matrix.data(), kColumns}, kColumns, panels.data());
  const std::vector<float> target = eighths(kRows * kColumns, 60);
  const std::vector<float> original = eighths(kRows * kColumns, 60);
  const std::vector<float> diagonal(kColumns, 2.0f);
  std::vector<float> scale(kRows, 0.5f), inverse(kRows, 2.0f);
  std::vector<std::int32_t> order;
  for (int i = 0; i < kColumns; ++i) order.push_back(i);
  std::vector<float> numbers, midpoints;
  std::vector<std::uint8_t> codes;
  for (int i = 0; i < 16; ++i) {
    numbers.push_back(is_run ? static_cast<float>(i - 8)
                             : static_cast<float>((i - 8) * (i < 8 ? 3 : 2)));
    codes.push_back(static_cast<std::uint8_t>(is_run ? i : 15 - i));
    if (i > 0) midpoints.push_back((numbers[i] + numbers[i - 1]) / 2.0f);
  }
  ColumnResult result{std::vector<std::uint8_t>(kRows * kColumns, 99),
                      std::vector<float>(kRows * kColumns, NAN)};
  const kernels::ColumnBlock block{kRows,
                                   kColumns,
                                   {scale.data(), inverse.data(), nullptr, nullptr, 1, 1, kColumns},
                                   {numbers.data(), midpoints.data(), codes.data(), 16, is_run},
                                   panels.data(),
                                   result.codes.data(),
                                   kColumns};
  const kernels::ColumnLoops& loops = kernels::column_loops(isa);
  const Memory scratch(loops.scratch_bytes(kColumns, 1));
  for (std::int64_t row = 0; row < kRows; row += loops.row_tile) {
    const std::int64_t end = std::min(kRows, row + loops.row_tile);
    const kernels::MutableRows moves{result.moves.data(), kColumns};
    const kernels::ConstRows first{target.data(), kColumns}, second{original.data(), kColumns};
    if (is_feedback) {
      loops.feed_back({block, order.data(), first, second, moves}, row, end, scratch.data());
    } else {
      loops.descend({block, diagonal.data(), first, second, moves}, row, end, scratch.data());
    }
  }
  return result;
}

void check_column_loops(Isa isa, Tally& tally) {
  for (const bool is_feedback : {true, false}) {
    for (const bool is_run : {true, false}) {
      const ColumnResult wanted = decided_columns(Isa::scalar, is_feedback, is_run, 7);
      const ColumnResult found = decided_columns(isa, is_feedback, is_run, 7);
      const std::string name =
          std::string(is_feedback ? "feedback" : "descent") + (is_run ? ", integers" : ", a table");
      tally.take_bytes(name + ", codes", wanted.codes.data(), found.codes.data(),
                       wanted.codes.size());
      tally.take_bytes(name + ", moves", wanted.moves.data(), found.moves.data(),
                       wanted.moves.size() * sizeof(float));
    }
  }
}

}  // namespace

int main(int count, char** words) {
  const std::string name = count > 1 ? words[1] : "";
  const Isa isa = kernels::isa_by_name(name);
  for (const auto& [known, set] : kernels::kInstructionSets) {
    if (set == kernels::best_isa()) std::printf("best: %s\n", known);
  }
  if (!kernels::is_available(isa)) {
    std::printf("this machine cannot run %s\n", name.c_str());
    return 2;
  }
  Tally tally;
  check_vectors(isa, tally);
  check_integers(isa, tally);
  check_attention(isa, tally);
  check_whole_attention(isa, tally);
  check_column_loops(isa, tally);
  check_vector_rounding(isa, tally);
  check_encoders(isa, tally);
  check_matrices(isa, tally);
  const bool counts = kernels::probe_dots(isa, 3) > 0;
  tally.take("probe", counts ? 0.0 : HUGE_VAL);
  std::printf("%d checks, %d failed\n", tally.checks, tally.failures);
  return tally.failures == 0 ? 0 : 1;
}
