// What becomes of a process whose mapped file loses pages: it dies by SIGBUS, but says so before.
#pragma once

#include <cstddef>
#include <string>

namespace ktd {

// Watches `size` bytes of a mapped file from `address` on, for as long as the process lives.
// Whoever reads a page there that the file does not have any more, or its disk does not give, ends
// the process as before; `text` is written into the file `report` first, unless there is one.
// Thread-safe.
void WatchMapping(const void* address, std::size_t size, std::string report, std::string text);

}  // namespace ktd
