package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Reboot takes the node's power away and gives it back: every container and part
// of the node but the control plane is killed, mounts and what is in /run are
// gone, and the parts start again. It answers once the driver's pod is back;
// others come later, with the same UIDs.
func (n *Node) Reboot(ctx context.Context) error {
	parts := []*Part{n.containerd, n.Kubelet}
	for _, p := range slices.Backward(parts) {
		if err := p.Kill(); err != nil {
			return err
		}
	}
	if err := killContainers(ctx); err != nil {
		return err
	}
	removeCgroups() // else kubelet is slow to start: 3 s for each
	if err := unmountAll("/var/lib/kubelet/", "/run/containerd/", "/run/netns/"); err != nil {
		return err
	}
	gone, err := filepath.Glob("/run/*")
	if err != nil {
		return err
	}
	for _, path := range gone {
		if path == etc || path == cni { // a real node has these on its disk
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("emptying the node's memory: %w", err)
		}
	}
	for _, p := range parts {
		if err := p.Start(ctx); err != nil {
			return err
		}
	}
	return n.Driver.Start(ctx)
}

// killContainers kills the containers and their shims until there are none. They
// are told by cgroup and name: the PID namespace has nobody else's.
func killContainers(ctx context.Context) error {
	for ctx.Err() == nil {
		alive := 0
		processes, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range processes {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			name, _ := os.ReadFile(dir + "/comm")
			groups, _ := os.ReadFile(dir + "/cgroup")
			if !strings.HasPrefix(string(name), "containerd-shim") && !strings.Contains(string(groups), ":/k8s.io/") {
				continue
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("killing a container: %w", err)
			}
			alive++
		}
		if alive == 0 {
			return nil
		}
	}
	return context.Cause(ctx)
}

// unmountAll unmounts what is mounted below the directories, the newest first.
func unmountAll(dirs ...string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("listing the mounts: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(string(table)), "\n")
	for _, line := range slices.Backward(lines) {
		target := strings.Fields(line)[4] // proc(5): the mount point
		if !slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasPrefix(target, dir) }) {
			continue
		}
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmounting %s: %w", target, err)
		}
	}
	return nil
}
