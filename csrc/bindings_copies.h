#pragma once

#include <pybind11/pybind11.h>

namespace ktd {

// Adds SlotCopies to the extension.
void BindCopies(pybind11::module_& module);

}  // namespace ktd
