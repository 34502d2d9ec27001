// SPDX-License-Identifier: Apache-2.0
// lilliput._native: Program (built operation by operation) and Engine (runs it).
// std::invalid_argument is ValueError.
#include "engine/engine.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/program.h"
#include "kernels/matmul.h"
#include "kernels/vector_kernels.h"

namespace nb = nanobind;

namespace {

using namespace nb::literals;
using namespace lilliput;

using Blocks = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Doubles = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using Bytes = nb::ndarray<const std::int8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Scales = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Points = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using LinearTuple = std::tuple<int, int, int, std::optional<std::string>>;

template <typename T, std::size_t N>
T by_name(const std::array<std::pair<const char*, T>, N>& table, const std::string& name,
          const char* what) {
  std::string known;
  for (const auto& [key, value] : table) {
    if (name == key) return value;
    known += (known.empty() ? "" : ", ") + std::string(key);
  }
  throw std::invalid_argument(std::string(what) + " '" + name + "' is unknown; known: " + known);
}

constexpr std::array<std::pair<const char*, kernels::Activation>, 5> kActivations{
    {{"silu", kernels::Activation::silu},
     {"gelu", kernels::Activation::gelu},
     {"gelu_tanh", kernels::Activation::gelu_tanh},
     {"relu", kernels::Activation::relu},
     {"tanh", kernels::Activation::tanh}}};
constexpr std::array<std::pair<const char*, engine::EmbedBy>, 3> kEmbedBy{
    {{"token", engine::EmbedBy::token},
     {"position", engine::EmbedBy::position},
     {"segment", engine::EmbedBy::segment}}};
constexpr std::array<std::pair<const char*, kernels::RopeStyle>, 2> kRopeStyles{
    {{"adjacent", kernels::RopeStyle::adjacent}, {"halves", kernels::RopeStyle::halves}}};
constexpr std::array<std::pair<const char*, bool>, 2> kExactInput{
    {{"engine", false}, {"f32", true}}};
constexpr std::array<std::pair<const char*, kernels::CacheFormat>, 6> kCacheFormats{
    {{"f16", kernels::CacheFormat::f16},
     {"f32", kernels::CacheFormat::f32},
     {"q8_0", kernels::CacheFormat::q8_0},
     {"q4_0", kernels::CacheFormat::q4_0},
     {"q8_0_plain", kernels::CacheFormat::q8_0_plain},
     {"q4_0_plain", kernels::CacheFormat::q4_0_plain}}};

// The program and the Python arrays whose bytes it points into.
struct BoundProgram {
  std::shared_ptr<engine::Program> program = std::make_shared<engine::Program>();
  std::vector<Blocks> owners;
  std::map<int, Blocks> code_owners;  // by matrix of integers

  int add_weight(const std::string& name, const std::string& format, std::int64_t columns,
                 Blocks blocks, bool is_mapped) {
    const int index = program->add_weight(name, format, static_cast<std::int64_t>(blocks.shape(0)),
                                          columns, {blocks.data(), blocks.nbytes()}, is_mapped);
    owners.push_back(std::move(blocks));
    return index;
  }

  int add_integers(const std::string& name, Blocks codes, const Bytes& levels, const Scales& scale,
                   const std::optional<Points>& zero_point) {
    if (levels.size() != 256) throw std::invalid_argument(name + ": 256 levels are needed");
    std::array<std::int8_t, 256> table;
    std::copy_n(levels.data(), 256, table.begin());
    std::vector<std::int32_t> points;
    if (zero_point) points.assign(zero_point->data(), zero_point->data() + zero_point->size());
    const int index = program->add_integers({name,
                                             static_cast<std::int64_t>(codes.shape(0)),
                                             static_cast<std::int64_t>(codes.shape(1)),
                                             {codes.data(), codes.nbytes()},
                                             table,
                                             {scale.data(), scale.data() + scale.size()},
                                             std::move(points)});
    code_owners.emplace(index, std::move(codes));
    return index;
  }

  // Linears have a layout of their own: codes are kept for what looks rows up.
  void forget_codes() {
    std::set<int> looked_up;
    for (const engine::Step& step : program->steps()) {
      const auto* embed = std::get_if<engine::Embed>(&step.operation);
      if (embed != nullptr && embed->is_integer) looked_up.insert(embed->weight);
    }
    std::erase_if(code_owners, [&](const auto& item) { return !looked_up.contains(item.first); });
  }

  static std::vector<engine::LinearPart> parts_of(const std::vector<LinearTuple>& tuples) {
    std::vector<engine::LinearPart> parts;
    for (const auto& [out, weight, bias, activation] : tuples) {
      engine::LinearPart part{out, weight, bias};
      if (activation) part.activation = by_name(kActivations, *activation, "activation");
      parts.push_back(part);
    }
    return parts;
  }
};

std::string instruction_set_name(kernels::Isa isa) {
  for (const auto& [name, value] : kernels::kInstructionSets) {
    if (value == isa) return name;
  }
  return "unknown";
}

std::vector<std::string> available_instruction_sets() {
  std::vector<std::string> names;
  for (const auto& [name, isa] : kernels::kInstructionSets) {
    if (kernels::is_available(isa)) names.emplace_back(name);
  }
  return names;
}

// Asks Python for pending signals (Ctrl-C) at most ten times a second; needs no GIL to decide not
// to.
class SignalCheck {
 public:
  bool operator()() {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) return false;
    next_ = now + std::chrono::milliseconds(100);
    nb::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() != 0;
  }

 private:
  std::chrono::steady_clock::time_point next_ =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
};

Logits forward(engine::Engine& self, const Ints& tokens, std::int64_t n_past,
               const Ints& output_rows, const std::optional<Ints>& segments, bool abreast,
               const std::optional<Ints>& lengths) {
  const auto span_of = [](const std::optional<Ints>& ints) {
    return ints ? std::span(ints->data(), ints->size()) : std::span<const std::int32_t>();
  };
  const std::size_t rows = output_rows.size();
  const auto width = static_cast<std::size_t>(self.output_width());
  auto values = std::make_unique_for_overwrite<float[]>(rows * width);
  try {
    nb::gil_scoped_release release;
    self.forward({tokens.data(), tokens.size()}, n_past, {output_rows.data(), rows},
                 {values.get(), rows * width}, SignalCheck(),
                 {span_of(segments), abreast, span_of(lengths)});
  } catch (const engine::Interrupted&) {
    throw nb::python_error();
  }
  nb::capsule owner(values.get(), [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return Logits(values.release(), {rows, width}, owner);
}

void bind_program(nb::module_& module) {
  nb::class_<BoundProgram>(module, "Program",
                           "A lowered forward pass; every add checks its indices and widths.")
      .def(nb::init<>())
      .def(
          "add_buffer",
          [](BoundProgram& self, std::int64_t width) { return self.program->add_buffer(width); },
          "width"_a)
      .def("add_weight", &BoundProgram::add_weight, "name"_a, "format"_a, "columns"_a,
           "blocks"_a.noconvert(), "is_mapped"_a = false,
           "blocks: uint8 [rows, row_bytes], kept alive. is_mapped: they lie in a mapped file, "
           "whose "
           "pages may be given back.")
      .def(
          "add_vector",
          [](BoundProgram& self, const Floats& values) {
            return self.program->add_vector({values.data(), values.data() + values.size()});
          },
          "values"_a.noconvert())
      .def(
          "add_rope",
          [](BoundProgram& self, const Doubles& inverse, double magnitude) {
            return self.program->add_rope({inverse.data(), inverse.data() + inverse.size()},
                                          magnitude);
          },
          "inverse_frequencies"_a.noconvert(), "magnitude"_a)
      .def(
          "add_state",
          [](BoundProgram& self, std::int64_t kv_heads, std::int64_t head_dim) {
            return self.program->add_state(kv_heads, head_dim);
          },
          "kv_heads"_a, "head_dim"_a)
      .def(
          "add_shared_state",
          [](BoundProgram& self, std::int64_t kv_heads, std::int64_t head_dim) {
            return self.program->add_shared_state(kv_heads, head_dim);
          },
          "kv_heads"_a, "head_dim"_a)
      .def(
          "add_bias",
          [](BoundProgram& self, std::int64_t heads, const Floats& values) {
            return self.program->add_bias(heads, {values.data(), values.data() + values.size()});
          },
          "heads"_a, "values"_a.noconvert(),
          "values: [heads][2 * reach + 1], flat, by the key's position less the query's.")
      .def(
          "embed",
          [](BoundProgram& self, int out, int weight, float scale, const std::string& by,
             std::int64_t offset, bool is_integer) {
            self.program->add(engine::Embed{out, weight, scale, by_name(kEmbedBy, by, "embed by"),
                                            offset, is_integer});
          },
          nb::kw_only(), "out"_a, "weight"_a, "scale"_a, "by"_a = "token", "offset"_a = 0,
          "is_integer"_a = false, "is_integer: weight is one of add_integers.")
      .def(
          "rms_norm",
          [](BoundProgram& self, int out, int x, int weight, float epsilon, std::int64_t groups) {
            self.program->add(engine::RmsNorm{out, x, weight, epsilon, groups});
          },
          nb::kw_only(), "out"_a, "x"_a, "weight"_a, "epsilon"_a, "groups"_a)
      .def(
          "layer_norm",
          [](BoundProgram& self, int out, int x, int weight, int bias, float epsilon) {
            self.program->add(engine::LayerNorm{out, x, weight, bias, epsilon});
          },
          nb::kw_only(), "out"_a, "x"_a, "weight"_a, "bias"_a, "epsilon"_a, "bias: or -1.")
      .def(
          "linears",
          [](BoundProgram& self, int x, const std::vector<LinearTuple>& parts) {
            self.program->add(engine::LinearGroup{x, BoundProgram::parts_of(parts)});
          },
          nb::kw_only(), "x"_a, "parts"_a,
          "parts: (out buffer, weight, bias vector or -1, activation or None) of linears that all "
          "read x.")
      .def("add_integers", &BoundProgram::add_integers, "name"_a, "codes"_a.noconvert(),
           "levels"_a.noconvert(), "scale"_a.noconvert(), "zero_point"_a.noconvert().none(),
           "value = scale * (levels[code] - zero_point). codes: uint8 [rows, columns], kept alive. "
           "levels: int8 [256]. scale: float32, zero_point: int32, [rows, groups].")
      .def(
          "integer_linears",
          [](BoundProgram& self, int x, const kernels::IntegerInput& input,
             const std::vector<LinearTuple>& parts) {
            self.program->add(engine::IntegerGroup{x, input, BoundProgram::parts_of(parts)});
          },
          nb::kw_only(), "x"_a, "input"_a, "parts"_a,
          "As linears, of matrices of integers, whose inputs become integers as `input` says.")
      .def(
          "rope",
          [](BoundProgram& self, int x, std::int64_t heads, std::int64_t head_dim, int frequencies,
             const std::string& style) {
            self.program->add(engine::Rope{x, heads, head_dim, frequencies,
                                           by_name(kRopeStyles, style, "rope style")});
          },
          nb::kw_only(), "x"_a, "heads"_a, "head_dim"_a, "frequencies"_a, "style"_a)
      .def(
          "attention",
          [](BoundProgram& self, std::tuple<int, int, int, int> buffers, int layer,
             std::tuple<std::int64_t, std::int64_t, std::int64_t> heads, float scale,
             std::int64_t window, float softcap, bool causal, int bias) {
            const auto [out, q, k, v] = buffers;
            const auto [n_heads, kv_heads, head_dim] = heads;
            self.program->add(engine::Attention{out, q, k, v, layer, n_heads, kv_heads, head_dim,
                                                scale, window, softcap, causal, bias});
          },
          nb::kw_only(), "buffers"_a, "layer"_a, "heads"_a, "scale"_a, "window"_a, "softcap"_a,
          "causal"_a = true, "bias"_a = engine::kNone,
          "buffers: out, q, k, v; k and v -1 to read the shared state `layer`.  heads: heads, "
          "kv_heads, head_dim.  window, softcap: 0 for none.")
      .def(
          "share",
          [](BoundProgram& self, int k, int v, int layer) {
            self.program->add(engine::Share{k, v, layer});
          },
          nb::kw_only(), "k"_a, "v"_a, "layer"_a)
      .def(
          "glu",
          [](BoundProgram& self, int out, int gate, int up, const std::string& activation) {
            self.program->add(
                engine::Glu{out, gate, up, by_name(kActivations, activation, "activation")});
          },
          nb::kw_only(), "out"_a, "gate"_a, "up"_a, "activation"_a)
      .def(
          "experts",
          [](BoundProgram& self, std::tuple<int, int, int> buffers,
             std::tuple<int, int, int> weights, const std::string& activation, std::int64_t used,
             bool normalizes) {
            const auto [out, x, router] = buffers;
            const auto [gate, up, down] = weights;
            self.program->add(engine::Experts{out, x, router, gate, up, down,
                                              by_name(kActivations, activation, "activation"), used,
                                              normalizes});
          },
          nb::kw_only(), "buffers"_a, "weights"_a, "activation"_a, "used"_a, "normalizes"_a,
          "buffers: out, x, router.  weights: gate, up, down, stacks of [experts * out, in].")
      .def(
          "integer_experts",
          [](BoundProgram& self, std::tuple<int, int, int> buffers,
             std::tuple<int, int, int> integers,
             std::tuple<kernels::IntegerInput, kernels::IntegerInput> inputs,
             const std::string& activation, std::int64_t used, bool normalizes) {
            const auto [out, x, router] = buffers;
            const auto [gate, up, down] = integers;
            const auto& [wide, inner] = inputs;
            self.program->add(engine::Experts{out,
                                              x,
                                              router,
                                              engine::kNone,
                                              engine::kNone,
                                              engine::kNone,
                                              by_name(kActivations, activation, "activation"),
                                              used,
                                              normalizes,
                                              {{gate, wide}, {up, wide}, {down, inner}}});
          },
          nb::kw_only(), "buffers"_a, "integers"_a, "inputs"_a, "activation"_a, "used"_a,
          "normalizes"_a,
          "As experts, of matrices of integers: the first expert's gate, up and down, those of the "
          "others after each.  inputs: of gate and up, of down.")
      .def(
          "activate",
          [](BoundProgram& self, int out, int x, const std::string& activation) {
            self.program->add(
                engine::Activate{out, x, by_name(kActivations, activation, "activation")});
          },
          nb::kw_only(), "out"_a, "x"_a, "activation"_a)
      .def(
          "scale",
          [](BoundProgram& self, int out, int x, float factor) {
            self.program->add(engine::Scale{out, x, factor});
          },
          nb::kw_only(), "out"_a, "x"_a, "factor"_a)
      .def(
          "softcap",
          [](BoundProgram& self, int out, int x, float limit) {
            self.program->add(engine::Softcap{out, x, limit});
          },
          nb::kw_only(), "out"_a, "x"_a, "limit"_a)
      .def(
          "add",
          [](BoundProgram& self, int out, int a, int b) {
            self.program->add(engine::Add{out, a, b});
          },
          nb::kw_only(), "out"_a, "a"_a, "b"_a)
      .def(
          "select_output_rows",
          [](BoundProgram& self, int out, int x) {
            self.program->add(engine::SelectOutputRows{out, x});
          },
          nb::kw_only(), "out"_a, "x"_a)
      .def(
          "set_output",
          [](BoundProgram& self, int buffer) {
            self.program->set_output(buffer);
            self.forget_codes();
          },
          "buffer"_a);
}

void bind_shared_cache(nb::module_& module) {
  nb::class_<engine::SharedCache>(module, "SharedCache",
                                  "Keys and values that an encoder leaves to a decoder.")
      .def(
          "__init__",
          [](engine::SharedCache* self, const BoundProgram& program, std::int64_t context,
             const std::string& kv_format) {
            new (self) engine::SharedCache(program.program->shared_states(), context,
                                           by_name(kCacheFormats, kv_format, "kv format"));
          },
          "program"_a, nb::kw_only(), "context"_a, "kv_format"_a = "f16")
      .def_prop_ro("length", [](const engine::SharedCache& self) { return self.length; });
}

void bind_engine_class(nb::module_& module) {
  nb::class_<engine::Engine>(module, "Engine", "Runs a Program on one sequence.")
      .def(
          "__init__",
          [](engine::Engine* self, const BoundProgram& program, std::int64_t context,
             std::int64_t batch, int threads, const std::string& instruction_set,
             const std::string& activations, const std::string& kv_format, bool repacks,
             std::int64_t sequences, const std::shared_ptr<engine::SharedCache>& shared) {
            const kernels::Isa isa = kernels::isa_by_name(instruction_set);
            if (!kernels::is_available(isa)) {
              throw std::invalid_argument("this machine cannot run the instruction set '" +
                                          instruction_set + "'");
            }
            const engine::EngineOptions options{context,
                                                batch,
                                                threads,
                                                isa,
                                                by_name(kExactInput, activations, "activations"),
                                                by_name(kCacheFormats, kv_format, "kv format"),
                                                repacks,
                                                sequences};
            new (self) engine::Engine(program.program, options, shared);
          },
          nb::keep_alive<1, 2>(), "program"_a, nb::kw_only(), "context"_a, "batch"_a, "threads"_a,
          "instruction_set"_a = "", "activations"_a = "engine", "kv_format"_a = "f16",
          "repacks"_a = true, "sequences"_a = 1, "shared"_a = nb::none())
      .def("forward", &forward, "tokens"_a.noconvert(), "n_past"_a, "output_rows"_a.noconvert(),
           "segments"_a.noconvert() = nb::none(), "abreast"_a = false,
           "lengths"_a.noconvert() = nb::none(),
           "tokens: int32 [n], at most `batch`, at positions n_past …; what the cache held from "
           "n_past on is dropped.  output_rows: int32, increasing.  Returns float32 "
           "[len(output_rows), vocabulary].  segments: int32 [n], None for all 0.  lengths: int32, "
           "tokens of each of several whole sequences, see longest_of_several. Raises "
           "ValueError; KeyboardInterrupt between "
           "operations, after which the cache holds n_past tokens.")
      .def("truncate", &engine::Engine::truncate, "length"_a)
      .def(
          "reorder",
          [](engine::Engine& self, const Ints& sources) {
            self.reorder({sources.data(), sources.size()});
          },
          "sources"_a.noconvert(),
          "sources: int32 [n]; sequence i goes on from what sources[i] was.")
      .def_prop_ro("length", &engine::Engine::length)
      .def_prop_ro("longest_of_several", &engine::Engine::longest_of_several,
                   "Tokens of each sequence at most that one pass takes several of; 0: one.")
      .def_prop_rw("threads", &engine::Engine::threads, &engine::Engine::set_threads)
      .def_prop_ro("context", [](const engine::Engine& self) { return self.options().context; })
      .def_prop_ro("batch", [](const engine::Engine& self) { return self.options().batch; })
      .def_prop_ro("cache_bytes", &engine::Engine::cache_bytes)
      .def_prop_ro("repacked_bytes", &engine::Engine::repacked_bytes)
      .def_prop_ro("instruction_set", [](const engine::Engine& self) {
        return instruction_set_name(self.options().isa);
      });
}

}  // namespace

void bind_engine(nb::module_& module) {
  bind_program(module);
  bind_shared_cache(module);
  bind_engine_class(module);
  module.def("available_instruction_sets", &available_instruction_sets,
             "Instruction sets that this machine runs, worst first.");
  module.def(
      "kv_cache_bytes",
      [](const std::string& kv_format, std::int64_t context, std::int64_t kv_heads,
         std::int64_t head_dim) {
        const auto format = by_name(kCacheFormats, kv_format, "kv format");
        return engine::KvCache({{kv_heads, head_dim}}, context, format).bytes();
      },
      "kv_format"_a, "context"_a, "kv_heads"_a, "head_dim"_a,
      "Bytes of one layer's cache of keys and values.");
  module.def(
      "repacked_bytes",
      [](const std::string& name, std::int64_t rows, std::int64_t columns,
         const std::string& instruction_set) {
        const kernels::MatmulKernel* kernel = kernels::interleaved_kernel(
            formats::format_by_name(name), kernels::isa_by_name(instruction_set));
        if (kernel == nullptr) return std::int64_t{0};
        return kernels::round_up(rows, kernels::kMostLanes) *
               kernel->interleaved_row_bytes(columns);
      },
      "name"_a, "rows"_a, "columns"_a, "instruction_set"_a = "",
      "Bytes that the engine lays a matrix out in; 0 for a format that runs as it is stored.");
  module.def("usable_cpus", &engine::usable_cpus, "CPUs that this process may use.");
}
