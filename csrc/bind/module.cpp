// The Python module ockham.kernels._cpu. Each part of the core binds itself in its own file.
#include <nanobind/nanobind.h>

#include "bind/bindings.h"

NB_MODULE(_cpu, module) {
    // Caches of the package hold objects until the interpreter has gone: no leak, and no news.
    nanobind::set_leak_warnings(false);
    module.doc() = "Ockham's native core. Its callers in ockham.kernels check what they pass.";
    ockham::bind_machine(module);
    ockham::bind_linear(module);
    ockham::bind_planes(module);
    ockham::bind_steps(module);
    ockham::bind_functions(module);
    ockham::bind_sampler(module);
    ockham::bind_scores(module);
    ockham::bind_timing(module);
    ockham::bind_digest(module);
    ockham::bind_text(module);
    ockham::bind_prefix_tree(module);
    ockham::bind_drafts(module);
    ockham::bind_adapters(module);
}
