package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// stage is set in the environment of this command's later runs: the one that is
// the namespaces' first process, and the one that does the work.
const (
	stage   = "TENURE_TEST_NODE_STAGE"
	first   = "first"
	working = "working"
)

// pidEnv tells the later runs the process id that the namespaces' first process
// has outside of them.
const pidEnv = "TENURE_TEST_NODE_PID"

// Isolate runs this very command again in namespaces for mounts, processes, the
// network and the host's name, waits for it and answers its exit code. In that
// other run, and only there, ran is false and the caller goes on. Call it before
// anything else: what was opened or started before is not part of the other run.
//
// The working run is not the namespaces' first process: that one reaps what the
// processes of containers leave, which would take os/exec's children from it.
func Isolate() (code int, ran bool) {
	switch os.Getenv(stage) {
	case working:
		return 0, false
	case first:
		pid, err := os.Readlink("/proc/self") // of the outer /proc still
		if err == nil {
			err = furnish()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "preparing the node's namespaces:", err)
			return 1, true
		}
		return reap(again(working, 0, pidEnv+"="+pid, "TMPDIR="+scratch)), true
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "a node needs root: it mounts and makes namespaces")
		return 1, true
	}
	removeCgroups()
	defer removeCgroups()
	const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	return wait(again(first, namespaces)), true
}

// Pid answers the process id of the namespaces' first process, as it is outside of
// them: who enters its namespaces is on the node, and SIGTERM ends it.
func Pid() string { return os.Getenv(pidEnv) }

// again prepares this very command for its next stage. It dies with us.
func again(next string, namespaces uintptr, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:gosec,noctx // it is this very command
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(append(os.Environ(), stage+"="+next), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// wait runs cmd to its end and passes interrupts on to it: they mean it, and we
// have cgroups to remove.
func wait(cmd *exec.Cmd) int {
	runtime.LockOSThread() // Pdeathsig is about the thread that started the process
	defer runtime.UnlockOSThread()
	defer relay(cmd)()
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "making the node's namespaces:", err)
		return 1
	}
	_ = cmd.Wait()
	return exitCode(cmd.ProcessState.Sys().(syscall.WaitStatus))
}

// reap is wait for the first process of a PID namespace, whose children are also
// those that lost their parents.
func reap(cmd *exec.Cmd) int {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer relay(cmd)()
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "starting the node's work:", err)
		return 1
	}
	for {
		var status syscall.WaitStatus
		switch pid, err := syscall.Wait4(-1, &status, 0, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, "waiting for the node's work:", err)
			return 1
		case pid == cmd.Process.Pid:
			return exitCode(status)
		}
	}
}

func exitCode(status syscall.WaitStatus) int {
	if status.Exited() {
		return status.ExitStatus()
	}
	return 128 + int(status.Signal()) // as a shell says it
}

// relay passes SIGINT and SIGTERM on to cmd until the answered function is called.
func relay(cmd *exec.Cmd) (stop func()) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for s := range signals {
			if cmd.Process != nil {
				_ = cmd.Process.Signal(s)
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
	}
}

// scratch is the directory for temporary files of the working run.
const scratch = "/var/lib/tmp"

// furnish gives the namespaces an empty /run, /var/lib and /var/log in memory, a
// /proc, loopback with a second address, and a name. Below /var/lib mounts
// propagate, as kubelet and volumes with mountPropagation need it.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	for _, dir := range []string{"/run", "/var/lib", "/var/log"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mounting %s: %w", dir, err)
		}
	}
	if err := unix.Mount("", "/var/lib", "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("sharing the mounts below /var/lib: %w", err)
	}
	if err := os.Mkdir(scratch, 0o700); err != nil {
		return fmt.Errorf("making the directory for temporary files: %w", err)
	}
	if err := os.Chmod(scratch, 0o777|os.ModeSticky); err != nil {
		return fmt.Errorf("making the directory for temporary files: %w", err)
	}
	if err := unix.Sethostname([]byte(Name)); err != nil {
		return fmt.Errorf("naming the host: %w", err)
	}
	return raiseLoopback()
}

// raiseLoopback starts lo and gives it the node's address, because kubelet and
// kube-apiserver refuse to announce a loopback one.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket: %w", err)
	}
	defer unix.Close(fd)
	up, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("naming loopback: %w", err)
	}
	up.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up); err != nil {
		return fmt.Errorf("starting loopback: %w", err)
	}
	second, err := unix.NewIfreq("lo:1")
	if err != nil {
		return fmt.Errorf("naming loopback's second address: %w", err)
	}
	if err := second.SetInet4Addr(address.AsSlice()); err != nil {
		return fmt.Errorf("writing loopback's second address: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, second); err != nil {
		return fmt.Errorf("adding loopback's second address: %w", err)
	}
	return nil
}

// containers are the cgroups of containerd's containers in every hierarchy, of
// version 1 and of version 2. They are in no namespace.
var containers = []string{"/sys/fs/cgroup/*/k8s.io", "/sys/fs/cgroup/k8s.io"}

// removeCgroups removes the cgroups that containers of killed nodes left. The
// kernel keeps those that are in use, another node's among them.
func removeCgroups() {
	for _, pattern := range containers {
		found, _ := filepath.Glob(pattern)
		for _, dir := range found {
			left, _ := filepath.Glob(dir + "/*")
			for _, container := range left {
				_ = unix.Rmdir(container) // not for the files among them
			}
			_ = unix.Rmdir(dir)
		}
	}
}
