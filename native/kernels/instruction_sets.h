// SPDX-License-Identifier: Apache-2.0
// The instruction sets that kernels are compiled for, and which of them this machine can run.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>

namespace lilliput::kernels {

// Forced in tests, otherwise the best this machine has.
enum class Isa : std::uint8_t { scalar, avx2, avx_vnni, avx512_vnni, neon_dotprod };
inline constexpr std::array<std::pair<const char*, Isa>, 5> kInstructionSets{
    {{"scalar", Isa::scalar},
     {"avx2", Isa::avx2},
     {"avx_vnni", Isa::avx_vnni},
     {"avx512_vnni", Isa::avx512_vnni},
     {"neon_dotprod", Isa::neon_dotprod}}};

// Calls X(name) for each set that this build holds, the best one last. The build compiles
// native/kernels/isa/*.cpp once for each, in a namespace of that name (CMakeLists.txt).
#if defined(__x86_64__)
#define LILLIPUT_BUILT_SETS(X) X(scalar) X(avx2) X(avx_vnni) X(avx512_vnni)
#elif defined(__aarch64__)
#define LILLIPUT_BUILT_SETS(X) X(scalar) X(neon_dotprod)
#else
#define LILLIPUT_BUILT_SETS(X) X(scalar)
#endif

// The same for kernels that multiply no bytes: there AVX-VNNI is AVX2, and compiled once for both.
#if defined(__x86_64__)
#define LILLIPUT_FLOAT_SETS(X) X(scalar) X(avx2) X(avx512_vnni)
constexpr Isa float_set(Isa isa) { return isa == Isa::avx_vnni ? Isa::avx2 : isa; }
#else
#define LILLIPUT_FLOAT_SETS(X) LILLIPUT_BUILT_SETS(X)
constexpr Isa float_set(Isa isa) { return isa; }
#endif

// Whether this machine (and build) can run kernels of an instruction set; the best one it can.
bool is_available(Isa isa);
Isa best_isa();
// Throws std::invalid_argument where !is_available(isa).
void require_available(Isa isa);
// The best one for an empty name; throws std::invalid_argument, listing the names, for others.
Isa isa_by_name(const std::string& name);

}  // namespace lilliput::kernels
