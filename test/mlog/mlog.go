// Package mlog stands in for monis.app/mlog, which the Secrets Store CSI
// driver imports and no module proxy serves any more. It has only the names
// that driver v1.6.0 uses, and writes through the standard logger.
package mlog

import (
	"context"
	"fmt"
	"log/slog"
	"os"
)

// LogFormat names the form of log lines.
type LogFormat string

// The formats that the driver's flag -log-format-json chooses between.
const (
	FormatText LogFormat = "text"
	FormatJSON LogFormat = "json"
)

// Setup prepares logging and returns what must be called at the end; here
// there is nothing to prepare or to flush.
func Setup() func() { return func() {} }

// ValidateAndSetKlogLevelAndFormatGlobally sets level and form of the log; the
// stand-in accepts every level, which klog's own flag has set already, and changes
// only the form. The level is any klog.Level, without a dependency on klog.
func ValidateAndSetKlogLevelAndFormatGlobally[L ~int32](_ context.Context, _ L, format LogFormat) error {
	if format == FormatJSON {
		slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	}
	return nil
}

// Error logs a message with its error and further pairs.
func Error(msg string, err error, pairs ...any) {
	slog.Error(msg, append([]any{"err", err}, pairs...)...)
}

// Fatal logs and ends the process with code 1.
func Fatal(args ...any) {
	slog.Error("stopping", "err", fmt.Sprint(args...))
	os.Exit(1)
}
