package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
)

func TestStatusTable(t *testing.T) {
	now := time.Date(2026, 11, 21, 21, 0, 0, 0, time.UTC)
	in := func(d time.Duration) time.Time { return now.Add(d) }
	volumes := []lease.VolumeStatus{
		{
			Namespace: "shop", Pod: "orders-1", Target: "/b", State: lease.NeedsIdentity, Owed: 1,
			Problem: "no fresh token; set requiresRepublish: true",
			Leases: []lease.LeaseStatus{{
				Objects: []string{"db"}, State: lease.Live, Reason: lease.First,
				Expires: in(9 * time.Minute), Next: in(-5 * time.Second), Problem: "no fresh token; set requiresRepublish: true",
			}},
		},
		{
			Namespace: "shop", Pod: "orders-0", Target: "/a", State: lease.Expired, Warnings: []string{`unknown parameter "colour"`},
			Leases: []lease.LeaseStatus{
				{Objects: []string{"user", "password"}, State: lease.Live, Reason: lease.Scheduled, Expires: in(42*time.Minute + 10*time.Second), Next: in(20 * time.Minute)},
				{Objects: []string{"config"}, State: lease.Live, Reason: lease.Content, Next: in(100 * time.Second)},
				{Objects: []string{"cert"}, State: lease.Expired, Reason: lease.First, Expires: in(-time.Hour), Next: in(30 * time.Second), Problem: "Vault is sealed"},
				{Objects: []string{"ca"}, State: lease.Live, Reason: lease.SpecEdit, Unrevocable: true, Expires: in(146 * time.Hour), Next: in(3*time.Hour + 5*time.Minute)},
			},
		},
		{Namespace: "evil", Pod: "x", State: lease.Waiting, Problem: "object \"\x1b[2J\": no\nway"},
	}
	var out bytes.Buffer
	require.NoError(t, printStatus(&out, volumes, now))
	golden(t, "status.golden", out.Bytes())
}

func TestStatusOfTenants(t *testing.T) {
	now := time.Date(2026, 11, 21, 21, 0, 0, 0, time.UTC)
	one := func(tenant string) lease.LeaseStatus {
		return lease.LeaseStatus{Objects: []string{tenant + "/db"}, Tenant: tenant, State: lease.Live, Reason: lease.TenantChange, Expires: now.Add(time.Hour), Next: now.Add(time.Minute)}
	}
	volumes := []lease.VolumeStatus{
		{
			Namespace: "shop", Pod: "pool-0", State: lease.Live, Leases: []lease.LeaseStatus{one("t-a"), one("t-b")},
			LeftOut: []lease.TenantStatus{{Tenant: "x", Problem: "no rule"}},
		},
		{Namespace: "shop", Pod: "silo-0", State: lease.Live, Leases: []lease.LeaseStatus{{Objects: []string{"db"}, State: lease.Live, Reason: lease.First}}},
	}
	var out bytes.Buffer
	require.NoError(t, printStatus(&out, volumes, now))
	golden(t, "status-tenants.golden", out.Bytes())
}

func TestStatusOfAnIdleNode(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, printStatus(&out, nil, time.Date(2026, 11, 21, 21, 0, 0, 0, time.UTC)))
	require.Equal(t, "2026-11-21 21:00:00 UTC: 0 volumes, 0 leases, 0 ends owed to the backend\n", out.String())
}
