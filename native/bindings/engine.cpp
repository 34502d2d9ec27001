// SPDX-License-Identifier: Apache-2.0
#include <nanobind/nanobind.h>

void bind_engine(nanobind::module_& module) { (void)module; }
