#pragma once

#include <pybind11/pybind11.h>

namespace ktd {

// Adds Ceilings and peaks() to the extension.
void BindCeilings(pybind11::module_& module);

}  // namespace ktd
