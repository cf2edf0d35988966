// Threads that belong to a pool: named, deaf to signals, pinned.
#pragma once

#include <pthread.h>

#include <functional>
#include <string>
#include <thread>

namespace ktd {

// Starts a thread with all signals but faults of its own blocked, so that they stay with the
// threads that expect them (Python's main one). `name` has at most 15 characters. Throws
// std::system_error.
std::thread StartWorkerThread(const std::string& name, std::function<void()> body);

// Throws std::runtime_error if the thread may not run on `cpu`.
void PinThread(pthread_t thread, int cpu);
inline void PinThread(std::thread& thread, int cpu) { PinThread(thread.native_handle(), cpu); }

}  // namespace ktd
