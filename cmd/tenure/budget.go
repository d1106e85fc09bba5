package main

import (
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

// defaultBudget is half of the memory that this process' control group may have,
// by version 2 or 1, or where nothing bounds it a sixteenth of the machine's.
func defaultBudget() int64 {
	var machine unix.Sysinfo_t
	if err := unix.Sysinfo(&machine); err != nil {
		return 0
	}
	total := int64(machine.Totalram) * int64(machine.Unit)
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, err := os.ReadFile(file)
		if limit, bad := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && bad == nil && limit < total {
			return limit / 2
		}
	}
	return total / 16
}
