// One function for each bind_*.cpp.
#pragma once

#include <nanobind/nanobind.h>

namespace ockham {

void bind_machine(nanobind::module_& module);  // instruction sets, thread pools, limits
void bind_linear(nanobind::module_& module);   // packed matrices and their products
void bind_executor(nanobind::module_& module);  // planes, programs, steps
void bind_sampler(nanobind::module_& module);   // from logits to tokens
void bind_timing(nanobind::module_& module);   // the small kernels, timed alone
void bind_digest(nanobind::module_& module);    // what tells weights apart
void bind_text(nanobind::module_& module);      // strings of GGUF files, byte-pair encoding
void bind_prefix_tree(nanobind::module_& module);  // cached state by tokens
void bind_drafts(nanobind::module_& module);       // what may come next

}  // namespace ockham
