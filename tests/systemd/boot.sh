#!/bin/bash
# Boots the host's own systemd as PID 1 of a throw-away namespace whose root is an overlay of the
# host's root, so that units can be tested in a container that was not booted with systemd.
#
#   boot.sh up   STATE UNITS     boots; files of the folder UNITS go to /etc/systemd/system
#   boot.sh sh   STATE CMD...    runs CMD inside
#   boot.sh down STATE           powers off and removes the cgroup
#
# KTD_BIND="SRC:DST ..."   read-only binds
# KTD_PYTHON=PREFIX        a virtual environment, which appears as /opt/ktd
#
# Needs root, CAP_SYS_ADMIN, cgroup v2 and overlayfs; `up` says on standard error what is missing.
set -euo pipefail
self=$(readlink -f "$0")
verb=$1 state=$(readlink -m "$2")
shift 2
group=ktd-boot-$(printf %s "$state" | cksum | cut -d' ' -f1)

cgroup_root() { findmnt -nrt cgroup2 -o TARGET | head -n 1; }

up() {
  units=$1
  mkdir -p "$state"
  root=$(cgroup_root)
  if [ -z "$root" ]; then
    mkdir -p "$state/cgroup"
    mount -t cgroup2 cgroup2 "$state/cgroup"
    root=$state/cgroup
  fi
  mkdir -p "$root/$group"
  # The shell enters its own cgroup first, which then is the root of the new cgroup namespace.
  (
    echo $BASHPID >"$root/$group/cgroup.procs"
    exec setsid unshare --mount --propagation private --uts --ipc --cgroup --net --pid --fork \
      "$self" inside "$state" "$units"
  ) </dev/null >"$state/console.log" 2>&1 &
  outer=$!
  echo $outer >"$state/outer.pid"
  for _ in $(seq 400); do
    init=$(tr -d ' ' <"/proc/$outer/task/$outer/children" 2>/dev/null || true)
    if [ -n "$init" ] && [ "$(cat "/proc/$init/comm" 2>/dev/null)" = systemd ]; then
      echo "$init" >"$state/init.pid"
      # "degraded" is up as well: some of the host's units cannot work in here.
      answer=$("$self" sh "$state" systemctl is-system-running 2>/dev/null || true)
      case $answer in running | degraded) exit 0 ;; esac
    fi
    kill -0 $outer 2>/dev/null || break
    sleep 0.05
  done
  echo "systemd did not come up:" >&2
  tail -n 20 "$state/console.log" >&2
  exit 1
}

inside() {
  units=$1 root=$state/root
  mkdir -p "$root" "$state/layers"
  mount -t tmpfs -o mode=755 tmpfs "$state/layers"
  mkdir "$state/layers/upper" "$state/layers/work"
  mount -t overlay overlay \
    -o "lowerdir=/,upperdir=$state/layers/upper,workdir=$state/layers/work" "$root"

  mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
  mount --bind "$root/proc/sys" "$root/proc/sys"
  mount -o remount,bind,ro "$root/proc/sys"
  mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
  mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
  mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
  for node in null zero full random urandom tty; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
  done
  mkdir "$root/dev/pts" "$root/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5,nosuid,noexec devpts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  for path in dev/shm tmp; do mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/$path"; done
  mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
  mkdir -p "$root/run/lock"

  # What a ktd on this host keeps is not this machine's; DynamicUser could not take it over anyway.
  rm -rf "$root"/var/lib/ktd "$root"/var/lib/private/ktd "$root"/var/cache/ktd

  # Only what a unit under test needs: a target of our own, and the host's other units masked.
  etc=$root/etc/systemd/system
  mount -t tmpfs -o mode=755 tmpfs "$etc"
  printf '%s\n' '[Unit]' 'Requires=sysinit.target dbus.socket' 'After=sysinit.target dbus.socket' \
    'AllowIsolate=yes' >"$etc/boot-test.target"
  ln -s boot-test.target "$etc/default.target"
  for unit in dev-hugepages.mount dev-mqueue.mount sys-fs-fuse-connections.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount tmp.mount \
    proc-sys-fs-binfmt_misc.automount systemd-journald-audit.socket systemd-udevd.service \
    systemd-udev-trigger.service systemd-modules-load.service systemd-sysctl.service \
    systemd-random-seed.service systemd-firstboot.service systemd-remount-fs.service \
    systemd-sysusers.service systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service \
    systemd-update-utmp.service systemd-journal-flush.service systemd-hwdb-update.service \
    systemd-machine-id-commit.service systemd-ask-password-console.path \
    systemd-ask-password-wall.path keyboard-setup.service; do
    ln -s /dev/null "$etc/$unit"
  done
  mkdir -p "$root/etc/systemd/journald.conf.d"
  printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nRateLimitBurst=0\n' \
    >"$root/etc/systemd/journald.conf.d/boot-test.conf"
  cp -r "$units/." "$etc/"

  for bind in ${KTD_BIND:-}; do
    mkdir -p "$root${bind#*:}"
    mount --rbind "${bind%%:*}" "$root${bind#*:}"
    mount -o remount,bind,ro "$root${bind#*:}"
  done
  if [ -n "${KTD_PYTHON:-}" ]; then python_at "$root"; fi

  hostname boot-test
  ip link set lo up 2>/dev/null || python3 -c '
import fcntl, socket, struct
request = struct.pack("16sH14x", b"lo", 0x41)  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING
fcntl.ioctl(socket.socket(), 0x8914, request)'
  cd "$root"
  mkdir -p mnt/outside
  pivot_root . mnt/outside
  # Shared again: credentials and DynamicUser need propagation.
  exec env -i container=boot-test PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /bin/sh -c \
    'umount -l /mnt/outside && mount --make-rshared / &&
     exec /lib/systemd/systemd --system --log-target=journal-or-kmsg --show-status=no'
}

# The environment's base interpreter may lie in somebody's home, which units cannot see; both get
# places of their own.
python_at() {
  root=$1
  home=$(sed -n 's/^home *= *//p' "$KTD_PYTHON/pyvenv.cfg")
  base=$(dirname "$home")
  program=$(basename "$(readlink -f "$KTD_PYTHON/bin/python")")
  mkdir -p "$root/opt/ktd/bin" "$root/opt/ktd/lib"
  if [ "$base" != /usr ]; then
    mkdir -p "$root/opt/ktd-base"
    mount --bind "$base" "$root/opt/ktd-base"
    mount -o remount,bind,ro "$root/opt/ktd-base"
    home=/opt/ktd-base/bin
  fi
  printf 'home = %s\ninclude-system-site-packages = false\n' "$home" >"$root/opt/ktd/pyvenv.cfg"
  ln -s "$home/$program" "$root/opt/ktd/bin/python"
  mount --bind "$KTD_PYTHON/lib" "$root/opt/ktd/lib"
  mount -o remount,bind,ro "$root/opt/ktd/lib"
}

run() {
  exec nsenter -t "$(cat "$state/init.pid")" -m -u -i -n -p -C -r -w -- env -i \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_PAGER=cat SYSTEMD_COLORS=0 "$@"
}

down() {
  outer=$(cat "$state/outer.pid") init=$(cat "$state/init.pid" 2>/dev/null || true)
  if [ -n "$init" ]; then
    kill -s RTMIN+14 "$init" 2>/dev/null || true # poweroff.target, the immediate form
    for _ in $(seq 100); do
      kill -0 "$outer" 2>/dev/null || break
      sleep 0.05
    done
    kill -9 "$init" 2>/dev/null || true # the whole pid namespace goes with it
  fi
  kill -9 "$outer" 2>/dev/null || true
  root=$(cgroup_root)
  for _ in $(seq 40); do
    [ -d "$root/$group" ] || break
    find "$root/$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
    sleep 0.05
  done
  if mountpoint -q "$state/cgroup"; then umount "$state/cgroup"; fi
}

case $verb in
up) up "$@" ;;
inside) inside "$@" ;;
sh) run "$@" ;;
down) down ;;
*) echo "usage: $0 up|sh|down STATE [...]" >&2; exit 2 ;;
esac
