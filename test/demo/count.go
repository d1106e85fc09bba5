package main

import (
	"context"
	"slices"
)

// remains is what is there of all that was ever issued.
type remains struct {
	users          []string
	leases, tokens int
}

func (r remains) sum() int { return len(r.users) + r.leases + r.tokens }

// remains asks PostgreSQL and Vault.
func (d *demo) remains(ctx context.Context) (r remains, err error) {
	if r.users, err = d.stack.Postgres.Roles(ctx, ""); err != nil {
		return r, err
	}
	if r.leases, err = d.stack.Vault.LeaseCount(ctx, creds); err != nil {
		return r, err
	}
	r.tokens, err = d.stack.Vault.TokenCount(ctx, "")
	return r, err
}

// noteUsers remembers the users that PostgreSQL has at this moment.
func (d *demo) noteUsers(ctx context.Context) error {
	users, err := d.stack.Postgres.Roles(ctx, "")
	for _, u := range users {
		if !slices.Contains(d.users, u) {
			d.users = append(d.users, u)
		}
	}
	return err
}

// granted answers how many requests of a kind Vault's audit log shows, without
// those that were refused.
func (d *demo) granted(operation, path string) (int, error) {
	all, err := d.stack.Vault.Audit()
	count := 0
	for _, a := range all {
		if a.Operation == operation && a.Path == path && a.Error == "" {
			count++
		}
	}
	return count, err
}
