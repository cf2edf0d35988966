// The pool's mailbox as a device sees it: csrc/mailbox.h's Mailbox, field by field. Without a
// header of its own, for NVRTC has none.
#pragma once

namespace ktd_device {

struct alignas(64) MailboxBox {
  // Written by the device, `epoch` last.
  unsigned int epoch;
  unsigned int layer;
  unsigned int tokens;
  unsigned int top_k;
  // Written once by the host: they stay the same from call to call.
  unsigned long long x;
  unsigned long long ids;
  unsigned long long weights;
  unsigned long long out;
  unsigned int deferred;  // the device's again
  unsigned int hidden;

  // Written by the pool.
  alignas(64) unsigned int answered;
  unsigned int failed;

  alignas(64) unsigned long long heartbeat;
};
static_assert(sizeof(MailboxBox) == 192, "three cache lines");

}  // namespace ktd_device
