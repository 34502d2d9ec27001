// SPDX-License-Identifier: Apache-2.0
#include <nanobind/nanobind.h>

#include "formats/format.h"

void bind_formats(nanobind::module_& module) { (void)module; }
