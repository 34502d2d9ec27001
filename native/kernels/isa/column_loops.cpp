// SPDX-License-Identifier: Apache-2.0
// Column loops with rows in lanes: a tile of rows is brought into columns of lanes, decided, and
// brought back. Four columns are accumulated together; inside the four one follows the other:
//   sum_j = start_j + sum_i<j move_i matrix_ij,  move_j = decide(j, sum_j)
#include "kernels/column_loops.h"

#include "simd/simd.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

using simd::broadcast;
using simd::Float;
using simd::Int;
using simd::kLanes;

constexpr int kVectors = 2;
constexpr int kRows = kVectors * kLanes;
constexpr int kPanel = kPanelColumns;
// Tables of so many numbers are compared one by one, longer ones halved.
constexpr int kSmallTable = 16;
// As formats/scale_search.py: beyond every format's range.
constexpr float kHuge = 1e9f;

inline Float clipped(Float a, Float low, Float high) {
  const Float above = a > low ? a : low;
  return above < high ? above : high;
}

// Half to even; exact for |a| < 2^22, which is all that is left once `a` is clipped.
inline Float rounded(Float a) {
  const Float magic = broadcast(12582912.0f);
  return (a + magic) - magic;
}

// [columns][kRows] floats of this thread.
struct Tile {
  float* data;
  Float at(std::int64_t column, int vector) const {
    return simd::load(data + column * kRows + vector * kLanes);
  }
  void put(std::int64_t column, int vector, Float values) const {
    simd::store(data + column * kRows + vector * kLanes, values);
  }
};

// Rows [begin, end) of a matrix -> tile; lanes past the end repeat the last row.
void load_tile(const ConstRows& rows, std::int64_t begin, std::int64_t end, std::int64_t columns,
               Tile tile) {
  for (int vector = 0; vector < kVectors; ++vector) {
    const float* first[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::int64_t row = begin + vector * kLanes + lane;
      first[lane] = rows.data + (row < end ? row : end - 1) * rows.stride;
    }
    std::int64_t column = 0;
    for (; column + kLanes <= columns; column += kLanes) {
      Int lanes[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = simd::load_int(first[lane] + column);
      simd::transpose(lanes);
      for (int j = 0; j < kLanes; ++j) tile.put(column + j, vector, (Float)lanes[j]);
    }
    for (; column < columns; ++column) {
      float* to = tile.data + column * kRows + vector * kLanes;
      for (int lane = 0; lane < kLanes; ++lane) to[lane] = first[lane][column];
    }
  }
}

// The inverse, times `sign`.
void store_tile(Tile tile, std::int64_t begin, std::int64_t end, std::int64_t columns, float sign,
                const MutableRows& rows) {
  for (int vector = 0; vector < kVectors; ++vector) {
    const std::int64_t start = begin + vector * kLanes;
    const std::int64_t n = end - start < kLanes ? end - start : kLanes;
    std::int64_t column = 0;
    for (; column + kLanes <= columns; column += kLanes) {
      Int lanes[kLanes];
      for (int j = 0; j < kLanes; ++j) {
        lanes[j] = (Int)(tile.at(column + j, vector) * broadcast(sign));
      }
      simd::transpose(lanes);
      for (std::int64_t lane = 0; lane < n; ++lane) {
        simd::store_int(rows.data + (start + lane) * rows.stride + column, lanes[lane]);
      }
    }
    for (; column < columns; ++column) {
      const float* from = tile.data + column * kRows + vector * kLanes;
      for (std::int64_t lane = 0; lane < n; ++lane) {
        rows.data[(start + lane) * rows.stride + column] = from[lane] * sign;
      }
    }
  }
}

// The groups' numbers of a tile of rows, brought into lanes.
struct LineTiles {
  Tile scale, inverse, offset, zero_point;
  std::int64_t group;
};

// Numbers of groups -> tile; where there are none, what leaves every value as it is.
void load_numbers(const GroupLines& lines, const float* numbers, float missing, std::int64_t begin,
                  std::int64_t end, Tile tile) {
  if (numbers != nullptr) {
    load_tile({numbers, lines.row_stride}, begin, end, lines.groups, tile);
    return;
  }
  for (std::int64_t i = 0; i < lines.groups * kRows; ++i) tile.data[i] = missing;
}

struct Decided {
  Float value;
  Int code;  // of a table: rank of the number
};

// The line of one group of kLanes rows.
struct Line {
  Float scale, inverse, offset, zero_point;
};

inline Line line_of(const LineTiles& lines, std::int64_t column, int vector) {
  const std::int64_t group = column / lines.group;
  return {lines.scale.at(group, vector), lines.inverse.at(group, vector),
          lines.offset.at(group, vector), lines.zero_point.at(group, vector)};
}

struct RunLevels {
  const ColumnLevels& levels;
  // level - zero_point = round((wanted - offset) * inverse), within the run
  Decided nearest(const Line& line, Float wanted) const {
    const Float low = broadcast(levels.numbers[0]) - line.zero_point;
    const Float high = broadcast(levels.numbers[levels.n - 1]) - line.zero_point;
    const Float bounded = clipped(wanted, broadcast(-kHuge), broadcast(kHuge));
    const Float level = rounded(clipped((bounded - line.offset) * line.inverse, low, high));
    const float first = levels.numbers[0] - static_cast<float>(levels.codes[0]);
    return {line.scale * level + line.offset,
            simd::round_to_int(level + line.zero_point - broadcast(first))};
  }
  std::uint8_t code(std::int32_t chosen) const { return static_cast<std::uint8_t>(chosen); }
};

struct TableLevels {
  const ColumnLevels& levels;
  Decided nearest(const Line& line, Float wanted) const {
    const Float bounded = clipped(wanted, broadcast(-kHuge), broadcast(kHuge));
    const Float y = (bounded - line.offset) * line.inverse;
    Float level = broadcast(levels.numbers[0]);
    Int rank = broadcast(0);
    if (levels.n <= kSmallTable) {
      for (int i = 1; i < levels.n; ++i) {
        const Int is_above = y > broadcast(levels.midpoints[i - 1]);
        level = is_above ? broadcast(levels.numbers[i]) : level;
        rank -= is_above;
      }
    } else {
      alignas(64) float each[kLanes];
      simd::store(each, y);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int found = rank_of(each[lane]);
        each[lane] = levels.numbers[found];
        rank[lane] = found;
      }
      level = simd::load(each);
    }
    return {line.scale * level + line.offset, rank};
  }
  // How many midpoints lie below y.
  int rank_of(float y) const {
    int below = 0;
    for (int n = levels.n - 1; n > 0;) {
      const int half = (n + 1) / 2;
      const bool is_above = y > levels.midpoints[below + half - 1];
      below += is_above ? half : 0;
      n = is_above ? n - half : half - 1;
    }
    return below;
  }
  std::uint8_t code(std::int32_t rank) const { return levels.codes[rank]; }
};

// Codes of one column of a tile.
template <typename Levels>
inline void store_codes(const ColumnBlock& block, const Levels& levels, std::int64_t column,
                        std::int64_t begin, std::int64_t end, Int codes) {
  alignas(64) std::int32_t each[kLanes];
  simd::store_int(each, codes);
  std::uint8_t* to = block.codes + begin * block.code_stride + column;
  const int n = static_cast<int>(end - begin < kLanes ? end - begin : kLanes);
  for (int lane = 0; lane < n; ++lane) to[lane * block.code_stride] = levels.code(each[lane]);
}

// starts: what the sums start from.  moves: filled column by column with what `decide` answers to
// (column, vector, sum).
template <typename Decide>
inline void run_columns(const ColumnBlock& block, Tile starts, Tile moves, const Decide& decide) {
  const std::int64_t columns = block.columns;
  for (std::int64_t first = 0; first < columns; first += kPanel) {
    const int n = static_cast<int>(columns - first < kPanel ? columns - first : kPanel);
    const float* panel = block.panels + first * columns;
    Float sums[kPanel][kVectors];
    for (int j = 0; j < kPanel; ++j) {
      for (int v = 0; v < kVectors; ++v) {
        sums[j][v] = starts.at(first + (j < n ? j : 0), v);
      }
    }
    for (std::int64_t i = 0; i < first; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        const Float move = moves.at(i, v);
        for (int j = 0; j < kPanel; ++j) {
          sums[j][v] = simd::fma(broadcast(panel[i * kPanel + j]), move, sums[j][v]);
        }
      }
    }
    for (int j = 0; j < n; ++j) {
      const float* factors = panel + (first + j) * kPanel;
      for (int v = 0; v < kVectors; ++v) {
        const Float move = decide(first + j, v, sums[j][v]);
        moves.put(first + j, v, move);
        for (int k = j + 1; k < n; ++k) {
          sums[k][v] = simd::fma(broadcast(factors[k]), move, sums[k][v]);
        }
      }
    }
  }
}

// Working memory of a tile, in this order.
struct Scratch {
  Tile starts, others, moves;
  LineTiles lines;
};

std::size_t scratch_bytes(std::int64_t columns, std::int64_t groups) {
  return static_cast<std::size_t>((3 * columns + 4 * groups) * kRows) * sizeof(float);
}

Scratch prepared_scratch(const ColumnBlock& block, std::int64_t begin, std::int64_t end,
                         std::uint8_t* memory) {
  float* next = reinterpret_cast<float*>(memory);
  const auto take = [&](std::int64_t columns) {
    float* data = next;
    next += columns * kRows;
    return Tile{data};
  };
  Scratch scratch{};
  for (Tile* tile : {&scratch.starts, &scratch.others, &scratch.moves}) *tile = take(block.columns);
  const GroupLines& lines = block.lines;
  LineTiles& tiles = scratch.lines;
  for (Tile* tile : {&tiles.scale, &tiles.inverse, &tiles.offset, &tiles.zero_point}) {
    *tile = take(lines.groups);
  }
  tiles.group = lines.group;
  load_numbers(lines, lines.scale, 1.0f, begin, end, tiles.scale);
  load_numbers(lines, lines.inverse, 1.0f, begin, end, tiles.inverse);
  // Adding -0 keeps the sign of a zero.
  load_numbers(lines, lines.offset, -0.0f, begin, end, tiles.offset);
  load_numbers(lines, lines.zero_point, 0.0f, begin, end, tiles.zero_point);
  return scratch;
}

template <typename Levels>
void feed_back_tile(const FeedbackBlock& work, std::int64_t begin, std::int64_t end,
                    std::uint8_t* memory) {
  const ColumnBlock& block = work.block;
  const Scratch scratch = prepared_scratch(block, begin, end, memory);
  load_tile(work.target, begin, end, block.columns, scratch.starts);
  load_tile(work.original, begin, end, block.columns, scratch.others);
  const Levels levels{block.levels};
  // Moves are errors with the other sign, so that they add to what is wanted.
  run_columns(
      block, scratch.starts, scratch.moves, [&](std::int64_t place, int vector, Float wanted) {
        const std::int64_t column = work.order[place];
        const Decided found = levels.nearest(line_of(scratch.lines, column, vector), wanted);
        store_codes(block, levels, column, begin + vector * kLanes, end, found.code);
        return scratch.others.at(place, vector) - found.value;
      });
  store_tile(scratch.moves, begin, end, block.columns, -1.0f, work.error);
}

template <typename Levels>
void descend_tile(const DescentBlock& work, std::int64_t begin, std::int64_t end,
                  std::uint8_t* memory) {
  const ColumnBlock& block = work.block;
  const Scratch scratch = prepared_scratch(block, begin, end, memory);
  load_tile(work.gradient, begin, end, block.columns, scratch.starts);
  load_tile(work.values, begin, end, block.columns, scratch.others);
  const Levels levels{block.levels};
  run_columns(
      block, scratch.starts, scratch.moves, [&](std::int64_t column, int vector, Float gradient) {
        const Float diagonal = broadcast(work.diagonal[column]);
        const Float value = scratch.others.at(column, vector);
        const Decided found =
            levels.nearest(line_of(scratch.lines, column, vector), value - gradient / diagonal);
        const Float move = found.value - value;
        const Float change = ((gradient + gradient) + move * diagonal) * move;
        const Int is_better = change < simd::zero();
        alignas(64) std::int32_t better[kLanes], codes[kLanes];
        simd::store_int(better, is_better);
        simd::store_int(codes, found.code);
        for (int lane = 0; lane < kLanes; ++lane) {
          const std::int64_t row = begin + vector * kLanes + lane;
          if (better[lane] != 0 && row < end) {
            block.codes[row * block.code_stride + column] = levels.code(codes[lane]);
          }
        }
        return is_better ? move : simd::zero();
      });
  store_tile(scratch.moves, begin, end, block.columns, 1.0f, work.moves);
}

void feed_back(const FeedbackBlock& work, std::int64_t begin, std::int64_t end,
               std::uint8_t* scratch) {
  if (work.block.levels.is_run) {
    feed_back_tile<RunLevels>(work, begin, end, scratch);
  } else {
    feed_back_tile<TableLevels>(work, begin, end, scratch);
  }
}

void descend(const DescentBlock& work, std::int64_t begin, std::int64_t end,
             std::uint8_t* scratch) {
  if (work.block.levels.is_run) {
    descend_tile<RunLevels>(work, begin, end, scratch);
  } else {
    descend_tile<TableLevels>(work, begin, end, scratch);
  }
}

}  // namespace

extern const ColumnLoops kColumnLoops;
const ColumnLoops kColumnLoops{kRows, &scratch_bytes, &feed_back, &descend};

}  // namespace lilliput::kernels::LILLIPUT_ISA
