package main

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWithoutPassword(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"the whole file", "[orders]\nhost=db\nport=5432\ndbname=orders\nuser=u\npassword=canary\n", "[orders]\nhost=db\nport=5432\ndbname=orders\nuser=u\npassword=(not shown)\n"},
		{"equals signs in the password", "password=canary=canary\n", "password=(not shown)\n"},
		{"no newline at the end", "user=u\npassword=canary", "user=u\npassword=(not shown)\n"},
		{"what the demo does not know", "sslpassword=canary\n", "sslpassword=(not shown)\n"},
	} {
		t.Run(tt.name, func(t *testing.T) { require.Equal(t, tt.want, withoutPassword([]byte(tt.text))) })
	}
}

func TestAwait(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name      string
		comes     time.Duration
		err, want error
		said      string
		took      time.Duration
	}{
		{"at once", 0, nil, nil, "", 0},
		{
			"after a while", 12 * time.Second, nil, nil,
			"[  5.0 s]    Waiting for spring: 5 s so far.\n[ 10.0 s]    Waiting for spring: 10 s so far.\n", 12 * time.Second,
		},
		{"never", time.Hour, nil, errors.New("waiting for spring: it did not come within 8s"), "[  5.0 s]    Waiting for spring: 5 s so far.\n", 8 * time.Second},
		{"with an error", time.Second, broken, broken, "", time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				most := 8 * time.Second
				if tt.want == nil {
					most = time.Minute
				}
				var said bytes.Buffer
				began := time.Now()
				err := newNarrator(&said, false, nil).await(t.Context(), "spring", most, func() (bool, error) {
					if time.Since(began) < tt.comes {
						return false, nil
					}
					return tt.err == nil, tt.err
				})
				if tt.want == nil {
					require.NoError(t, err)
				} else {
					require.EqualError(t, err, tt.want.Error())
				}
				require.Equal(t, tt.took, time.Since(began))
				require.Equal(t, tt.said, said.String())
			})
		})
	}
}

func TestAwaitEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := newNarrator(&bytes.Buffer{}, false, nil).await(ctx, "spring", time.Minute, func() (bool, error) { return false, nil })
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// noReader is a pipe whose other end is closed.
type noReader struct{}

func (noReader) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestNarratorGivesUpWithoutReader(t *testing.T) {
	gaveUp := 0
	n := newNarrator(noReader{}, false, func() { gaveUp++ })
	n.begin("Talking to nobody.")
	n.say("Still.")
	require.Equal(t, 1, gaveUp)
	require.ErrorContains(t, n.lost, "broken pipe")
}

func TestStepsAreBoldOnTerminalsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for bold, want := range map[bool]string{
			false: "\n[  0.0 s] 1. Starting Vault.\n",
			true:  "\n[  0.0 s] \x1b[1m1. Starting Vault.\x1b[0m\n",
		} {
			var said bytes.Buffer
			newNarrator(&said, bold, nil).begin("Starting %s.", "Vault")
			require.Equal(t, want, said.String())
		}
	})
}
