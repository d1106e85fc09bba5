package vault

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/tenure-csi/tenure/internal/format"
	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// issue says what a read's answer gives and until when. Vault's answers do not
// name their engine in every version, so their shape decides, and mount_type
// only where it says that data is a KV's: a user may store anything there.
func issue(c call, a answer, now time.Time) (lease.Issued, *lease.Failure) {
	out := lease.Issued{
		Secret:  format.Secret{Data: a.Data, Envelope: envelope(a)},
		LeaseID: a.LeaseID, Renewable: a.Renewable && a.LeaseID != "",
		Kind: lease.Once,
	}
	if c.method == http.MethodGet {
		out.Kind = lease.Polled
	}
	if f := shape(c, a); f != nil {
		return out, f
	}
	session, _ := awsKeys(a)
	switch kv2, meta := kvVersion2(c, a); {
	case meta != nil && kv2 == nil:
		return out, deleted(c, meta)
	case meta != nil:
		out.Secret.Data = kv2
		out.TTL = until(meta["deletion_time"], now)
	case session:
		awsSession(&out, a)
	case a.LeaseID != "":
		out.Kind, out.TTL = lease.Leased, seconds(a.LeaseDuration)
	case a.MountType == "kv":
	case a.Data["last_vault_rotation"] != nil:
		out.Kind, out.Next = lease.Static, nextRotation(a.Data)
	case a.Data["certificate"] != nil && a.Data["expiration"] != nil:
		end, ok := whole(a.Data["expiration"])
		if !ok || !time.Unix(end, 0).After(now) {
			f := c.fail(lease.Retry, provider.Unavailable, "", "the certificate that Vault issued is expired", "compare the clocks of this node and of Vault")
			f.MayHaveMinted = c.mints
			return out, f
		}
		out.Kind, out.TTL = lease.Leased, min(time.Unix(end, 0).Sub(now), maxSeconds*time.Second)
	}
	if out.TTL > 0 && !out.Renewable {
		out.Secret.Expires = now.Add(out.TTL)
	}
	return out, nil
}

// shape refuses answers that are no secret at all.
func shape(c call, a answer) *lease.Failure {
	fail := func(v lease.Verdict, cause, remedy string) *lease.Failure {
		f := c.fail(v, provider.Invalid, "secretPath", cause, remedy)
		f.MayHaveMinted = c.mints
		return f
	}
	switch {
	case a.Auth != nil && a.Data == nil:
		return fail(lease.Wrong, "the answer is a Vault token, not data", "name a path that gives data")
	case a.WrapInfo != nil:
		return fail(lease.Wrong, "the answer is wrapped", "remove the response wrapping from the policy of this path")
	case a.Data == nil:
		return fail(lease.Wrong, "the answer holds no data", "name a path that gives data")
	case a.LeaseID != "" && a.LeaseDuration <= 0, a.LeaseDuration < 0:
		return fail(lease.Retry, "the answer's lease has no time left", "")
	}
	return nil
}

// kvVersion2 returns the data and the metadata of a KV version 2 answer. meta
// is nil for any other answer; data is nil when the version is deleted.
func kvVersion2(c call, a answer) (data, meta map[string]any) {
	if c.method != http.MethodGet || a.LeaseID != "" || len(a.Data) != 2 || (a.MountType != "kv" && a.MountType != "") {
		return nil, nil
	}
	meta, ok := a.Data["metadata"].(map[string]any)
	if !ok || meta["version"] == nil || meta["created_time"] == nil {
		return nil, nil
	}
	raw, ok := a.Data["data"]
	data, isMap := raw.(map[string]any)
	if !ok || raw != nil && !isMap {
		return nil, nil
	}
	return data, meta
}

// envelope is the response as the HashiCorp provider writes it for an object
// without secretKey: the wire's fields, without an absent auth and wrap_info.
func envelope(a answer) map[string]any {
	out := map[string]any{
		"request_id": a.RequestID, "lease_id": a.LeaseID, "lease_duration": a.LeaseDuration,
		"renewable": a.Renewable, "data": a.Data, "warnings": a.Warnings,
	}
	if a.MountType != "" {
		out["mount_type"] = a.MountType
	}
	return out
}

// nextRotation is the time to a static role's next rotation: its ttl, else its
// period. At least a second: at 0 Vault is about to rotate.
func nextRotation(data map[string]any) time.Duration {
	next, ok := whole(data["ttl"])
	if !ok {
		next, _ = whole(data["rotation_period"])
	}
	return time.Duration(min(max(next, 1), maxSeconds)) * time.Second
}

// until is the time to an RFC 3339 date that lies ahead, else 0.
func until(date any, now time.Time) time.Duration {
	text, _ := date.(string)
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || !at.After(now) {
		return 0
	}
	return at.Sub(now)
}

// whole reads a whole number as Vault writes it: a number, or a number in a text.
func whole(v any) (int64, bool) {
	var text string
	switch v := v.(type) {
	case json.Number:
		text = v.String()
	case string:
		text = v
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil
}
