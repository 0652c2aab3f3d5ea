// One function for each part of the core, in the file of its name.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "kernels/layer_kernels.h"

namespace ockham {

// By the name of PlaneSpec.dtype. Throws std::invalid_argument if there is no such type.
Element element_named(const std::string& name);

void bind_machine(nanobind::module_& module);  // instruction sets, thread pools, limits
void bind_linear(nanobind::module_& module);   // packed matrices and their products
void bind_planes(nanobind::module_& module);   // keys and values
void bind_steps(nanobind::module_& module);    // executors of programs, and their steps
void bind_functions(nanobind::module_& module);  // exp and tanh
void bind_sampler(nanobind::module_& module);   // from logits to tokens
void bind_scores(nanobind::module_& module);    // how sure a model is of a token
void bind_timing(nanobind::module_& module);   // the small kernels, timed alone
void bind_digest(nanobind::module_& module);    // what tells weights apart
void bind_text(nanobind::module_& module);      // strings of GGUF files, byte-pair encoding
void bind_prefix_tree(nanobind::module_& module);  // cached state by tokens
void bind_drafts(nanobind::module_& module);       // what may come next
void bind_adapters(nanobind::module_& module);     // what is added to products for some rows

}  // namespace ockham
