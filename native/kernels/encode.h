// SPDX-License-Identifier: Apache-2.0
// Searched encoders of whole rows; the bytes are those of the array code on every instruction set.
#pragma once

#include <cstdint>

#include "formats/format.h"
#include "kernels/matmul.h"

namespace lilliput::kernels {

// Finite weights [rows, columns]; columns is a multiple of the format's block and of 32.
// importance: relative importance of each column (mean about 1), or null.
// Squared errors weigh importance * sqrt(mean_square_share * mean square of the row + weight^2);
// importance alone where the share is infinite.
struct RowsToEncode {
  const float* weights;
  const float* importance;
  std::int64_t rows;
  std::int64_t columns;
  float mean_square_share;
};

using EncodeRows = void (*)(const RowsToEncode& rows, std::uint8_t* blocks);

// The encoder of a format; null where there is none.
EncodeRows row_encoder(formats::FormatId format, Isa isa);

// Vectors y [unit, n] in units of their scale; metric [unit, unit], symmetric.
struct VectorsToRound {
  const float* y;
  std::int64_t n;
  const float* metric;
};
// Codes of vectors [begin, end).
using RoundVectors = void (*)(const VectorsToRound& vectors, std::int64_t begin, std::int64_t end,
                              std::int32_t* codes);
// round: null where the format has no vectors.
struct VectorRounder {
  RoundVectors round;
  int unit;
};
VectorRounder vector_rounder(formats::FormatId format, Isa isa);

}  // namespace lilliput::kernels
