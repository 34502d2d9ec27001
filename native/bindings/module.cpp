// SPDX-License-Identifier: Apache-2.0
// The Python module lilliput._native. Each room binds itself in its own file.
#include <nanobind/nanobind.h>

void bind_formats(nanobind::module_& module);
void bind_engine(nanobind::module_& module);
void bind_column_loops(nanobind::module_& module);
void bind_integer_matmul(nanobind::module_& module);
void bind_gguf_strings(nanobind::module_& module);

NB_MODULE(_native, module) {
  // A model that is still there when the interpreter ends is a global variable, not a leak.
  nanobind::set_leak_warnings(false);
  module.doc() = "lilliput's native core: number formats, kernels, engine";
  bind_formats(module);
  bind_engine(module);
  bind_column_loops(module);
  bind_integer_matmul(module);
  bind_gguf_strings(module);
}
