#pragma once

#include <pybind11/pybind11.h>

namespace ktd {

// Adds quantise() and dequantise() to the extension.
void BindQuantise(pybind11::module_& module);

}  // namespace ktd
