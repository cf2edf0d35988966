// Makes a layer's memory appear where it will be read.
#pragma once

#include <cstdint>

#include "numa.h"
#include "thread_pool.h"

namespace ktd {

// Touches every page of `memory`, which holds `matrices` and whose contents stay as they are, with
// a worker of the home that PageHomes names. Fresh memory appears on that worker's node then, in
// huge pages while there are any: before a page cache fills up with weight files.
void TouchFirst(ThreadPool& threads, const NumaHomes& homes, const LayerMatrices& matrices,
                std::uint8_t* memory);

}  // namespace ktd
