package lease

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRecordChangesUnderItsLock: whoever holds mu may read all of a record, also
// while the volume is mounted and edited. The race detector judges. It runs in
// real time: in a bubble, a reader that never rests would stop the clock.
func TestRecordChangesUnderItsLock(t *testing.T) {
	n := newNode(t)
	defer n.stop()
	var objects strings.Builder
	for i := range 30 {
		n.serve(hour, fmt.Sprint("r", i))
		objects.WriteString(db(fmt.Sprint("f", i), fmt.Sprint("database/creds/r", i)))
	}
	p := n.pod("read", "")
	w, err := n.m.worker(p.request())
	require.NoError(t, err)
	done, read := make(chan struct{}), make(chan error)
	go func() {
		defer close(read)
		for {
			select {
			case <-done:
				return
			default:
			}
			w.mu.Lock()
			_, err := json.Marshal(w.rec)
			w.mu.Unlock()
			if err != nil {
				read <- err
			}
		}
	}()
	for i := range 5 { // an edit that writes no file anew, but the first
		p.objects = strings.ReplaceAll(objects.String(), "secretKey", fmt.Sprintf("overlap: %ds, secretKey", 1+i))
		_, err := n.m.Mount(t.Context(), p.request())
		require.NoError(t, err)
	}
	close(done)
	require.NoError(t, <-read)
}
