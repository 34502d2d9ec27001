// SPDX-License-Identifier: Apache-2.0
#include "kernels/instruction_sets.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace lilliput::kernels {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
}
bool has_avx512_vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
bool has_avx_vnni() {
#if defined(LILLIPUT_EVEX_DOTS)
  return has_avx512_vnni();
#else
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  constexpr unsigned kAvxVnni = 1u << 4;  // of EAX, leaf 7, subleaf 1
  return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 &&
         (eax & kAvxVnni) != 0;
#endif
}
#elif defined(__aarch64__)
bool has_neon_dotprod() {
#if defined(__linux__)
  constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP of <asm/hwcap.h>
  return (getauxval(AT_HWCAP) & kDotProducts) != 0;
#elif defined(__APPLE__)
  return true;  // every one of its processors that runs macOS
#else
  return false;
#endif
}
#endif

}  // namespace

bool is_available(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return true;
#if defined(__x86_64__)
    case Isa::avx2:
      return has_avx2();
    case Isa::avx_vnni:
      return has_avx_vnni();
    case Isa::avx512_vnni:
      return has_avx512_vnni();
#elif defined(__aarch64__)
    case Isa::neon_dotprod:
      return has_neon_dotprod();
#endif
    default:
      return false;
  }
}

Isa best_isa() {
  Isa best = Isa::scalar;
#define LILLIPUT_BEST(set) \
  if (is_available(Isa::set)) best = Isa::set;
  LILLIPUT_BUILT_SETS(LILLIPUT_BEST)
#undef LILLIPUT_BEST
  return best;
}

void require_available(Isa isa) {
  if (!is_available(isa)) {
    throw std::invalid_argument("this machine cannot run the instruction set asked for");
  }
}

Isa isa_by_name(const std::string& name) {
  if (name.empty()) return best_isa();
  std::string known;
  for (const auto& [other, isa] : kInstructionSets) {
    if (name == other) return isa;
    known += known.empty() ? other : std::string(", ") + other;
  }
  throw std::invalid_argument("unknown instruction set '" + name + "'; known: " + known);
}

}  // namespace lilliput::kernels
