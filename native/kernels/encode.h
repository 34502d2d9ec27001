// SPDX-License-Identifier: Apache-2.0
// Searched encoders of whole rows; the bytes are those of the array code on every instruction set.
#pragma once

#include <cstdint>

#include "formats/format.h"
#include "kernels/matmul.h"

namespace lilliput::kernels {

// Encodes `rows` rows of `columns` finite weights, a multiple of the format's block and of 32.
// importance: relative importance of each column (mean about 1), or null for plain squared error.
using EncodeRows = void (*)(const float* weights, const float* importance, std::int64_t rows,
                            std::int64_t columns, std::uint8_t* blocks);

// The encoder of a format; null where there is none.
EncodeRows row_encoder(formats::FormatId format, Isa isa);

}  // namespace lilliput::kernels
