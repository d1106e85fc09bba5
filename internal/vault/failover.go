package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// firstAgain is how long calls stay with another address than the operator's
// first before one of them tries the first again.
const firstAgain = time.Minute

// ownAddresses are the operator's, all of one cluster: a token or lease that one of
// them gave is good at each. Calls go to the one that answered last.
type ownAddresses struct {
	all []string // normalised, the preferred one first; empty: none

	mu    sync.Mutex
	used  int       // index of the address that calls go to
	again time.Time // when one call tries the first again, while another is used
}

// pick gives the address for a new call; empty without addresses.
func (a *ownAddresses) pick() string {
	if len(a.all) == 0 {
		return ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now(); a.used != 0 && !now.Before(a.again) {
		a.again = now.Add(firstAgain) // this call alone waits for it if it is still away
		return a.all[0]
	}
	return a.all[a.used]
}

// after gives the address that follows one, round the list.
func (a *ownAddresses) after(addr string) string {
	return a.all[(slices.Index(a.all, addr)+1)%len(a.all)]
}

// note lets calls go to addr from now on when it answered, and to the one after
// it when it did not. It reports whether they went elsewhere before.
func (a *ownAddresses) note(addr string, answered bool) (moved bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.Index(a.all, addr)
	if !answered {
		if i != a.used {
			return false
		}
		i = (i + 1) % len(a.all)
	}
	if i == a.used {
		return false
	}
	a.used, a.again = i, time.Now().Add(firstAgain)
	return true
}

// elsewhere reports whether another node of the cluster may do what this one did
// not. It must be certain that this one did nothing: a read may mint.
func (a answer) elsewhere() bool {
	var redirect *redirectError
	var args *argsError
	switch {
	case errors.As(a.err, &redirect):
		return true // a standby that names an active node which is not allowed
	case a.err != nil:
		return !a.sent && !errors.As(a.err, &args)
	case a.status >= 472 && a.status <= 474:
		return true // standbys of Vault Enterprise, or without an active node
	case a.status == http.StatusServiceUnavailable:
		return a.says("sealed") // any other may be of a proxy that had passed the request on
	}
	return a.status == http.StatusInternalServerError && a.says("local node not active")
}

// try sends a call to its address, and as long as nothing can have been done to
// the operator's others. An SPC's own vaultAddress stands alone. It leaves in
// c.to who was asked last.
func (s *Source) try(ctx context.Context, c *call) (answer, attempts) {
	var tried attempts
	for at := c.to; ; at.addr = s.addrs.after(at.addr) {
		start := time.Now()
		var a answer
		a, c.to = s.ask(ctx, *c, at)
		tried = append(tried, attempted{c.to.addr, time.Since(start), ""})
		switch {
		case c.login.Address != "" || ctx.Err() != nil:
			return a, tried
		case !a.elsewhere():
			if a.sent && s.addrs.note(at.addr, a.status != 0) {
				s.log.Info("asking Vault at another address from now on", "last", at.addr, "answered", a.status != 0, "before", tried.String())
			}
			return a, tried
		case len(tried) == len(s.addrs.all):
			return a, tried
		}
		tried[len(tried)-1].cause = strings.TrimPrefix(classify(*c, a).Problem.Cause, c.about()+": ")
	}
}

// attempted is what came of a call at one address.
type attempted struct {
	addr  string
	took  time.Duration
	cause string // of the failure; empty for the last
}

// attempts are those of one call, in their order.
type attempts []attempted

// String tells the attempts before the last and how long each took; empty
// without any.
func (t attempts) String() string {
	var texts []string
	for _, one := range t[:len(t)-1] {
		texts = append(texts, fmt.Sprintf("%s after %s: %s", one.addr, one.took.Round(time.Millisecond), one.cause))
	}
	return strings.Join(texts, "; ")
}

// explain adds to the cause of a call's failure what was tried before it.
func (t attempts) explain(cause string) string {
	if len(t) == 1 {
		return cause
	}
	return fmt.Sprintf("%s (after %s; before that %s)", cause, t[len(t)-1].took.Round(time.Millisecond), t)
}
