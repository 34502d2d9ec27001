// SPDX-License-Identifier: Apache-2.0
// What the machine can do at this moment: the yardsticks that kernel speeds are read against.
#pragma once

#include <cstdint>

#include "kernels/matmul.h"

namespace lilliput::kernels {

// Operations (two per product) of int8 dot products on registers alone, on one thread.
std::int64_t probe_dots(Isa isa, std::int64_t iterations);
// Reads n_bytes (a multiple of 512) once, in order; returns a sum so that nothing is left out.
std::int64_t probe_read(Isa isa, const std::uint8_t* bytes, std::int64_t n_bytes);

}  // namespace lilliput::kernels
