package main

import (
	"cmp"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// parseSize reads bytes with Kubernetes' binary suffixes Ki, Mi and Gi. Less than a
// volume may have (4 MiB) twice would let a namespace, which has half, mount none.
func parseSize(text string) (int64, error) {
	digits, unit := text, int64(1)
	for i, suffix := range []string{"Ki", "Mi", "Gi"} {
		if number, ok := strings.CutSuffix(text, suffix); ok {
			digits, unit = number, 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil && unit == 1 {
		n, err = strconv.ParseInt(digits, 10, 64)
	}
	if err != nil || n*unit < 8<<20 {
		return 0, errors.New("it is no size of at least 8Mi; write it like 64Mi")
	}
	return n * unit, nil
}

// memory is how what this process' control group may have is divided, in bytes.
type memory struct {
	files   int64 // of all volumes: pages that we write are charged to us
	process int64 // of the Go runtime, which collects harder near it; 0: nothing bounds it
}

// divideMemory gives files the budget, or without one half of the limit, and the
// process what is left but for the kernel's share of small files (0.23 bytes a byte of
// a page, measured by test/e2e) and a margin for the journal and what Go does not count.
// Without a limit (0), files have a sixteenth of the machine's.
func divideMemory(limit, machine, budget int64) memory {
	if limit == 0 {
		return memory{files: cmp.Or(budget, machine/16)}
	}
	files := cmp.Or(budget, limit/2)
	return memory{files: files, process: max(limit-files-files/4-limit/32, limit/16)}
}

// memoryLimit returns what this process' control group may have, by version 2 or 1,
// 0 where that is all that the machine has, and what that is.
func memoryLimit() (limit, machine int64) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, 0
	}
	machine = int64(info.Totalram) * int64(info.Unit)
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, err := os.ReadFile(file)
		if limit, bad := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && bad == nil && limit < machine {
			return limit, machine
		}
	}
	return 0, machine
}
