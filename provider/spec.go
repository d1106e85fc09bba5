package provider

import (
	"cmp"
	"io/fs"
	"net/url"
	"time"
)

// Spec is a parsed SecretProviderClass as one pod sees it: its parameters
// overlaid by the pod's volumeAttributes, defaults merged, placeholders replaced.
// It depends on the raw attributes and the names of tenants alone, never on
// flags, so that a flag change re-issues nothing.
type Spec struct {
	Objects  []Object // in the SPC's order, for each tenant; at least one but where all tenants are patterns
	Tenants  *Tenants // nil: the SPC is not for tenants
	Warnings []string // what was ignored and why, for the log, the Event and the status
}

// Object is one entry of the SPC's objects for one tenant: a read, and how its
// answer becomes files.
type Object struct {
	Name     string      `json:",omitzero"` // file name below the volume, or the directory of a multi-file format
	Tenant   string      `json:",omitzero"` // empty without tenants
	Read     Read        `json:",omitzero"`
	Key      string      `json:",omitzero"` // secretKey: the entry of the data to write; empty: all of it
	Encoding string      `json:",omitzero"` // "", "base64" or "hex": how the value is decoded before it is written
	Format   string      `json:",omitzero"` // empty: exactly what the HashiCorp provider writes
	Template string      `json:",omitzero"` // Go template, for Format "template"
	Mode     fs.FileMode `json:",omitzero"` // 0–0777, the request's permission where the object says nothing
	UID, GID int         `json:",omitzero"` // numeric owner and group; -1: left as created

	Connection Connection `json:",omitzero"` // for the formats that describe a database connection
	MountPath  string     `json:",omitzero"` // where the application sees the volume; empty: unknown

	Refresh time.Duration `json:",omitzero"` // how often to look again at a read without a lease; never zero
	Overlap time.Duration `json:",omitzero"` // how long an old credential outlives its replacement; zero: the policy's default
}

// Connection holds the parts of a database connection that are not secret.
type Connection struct {
	Host   string            `json:",omitzero"`
	Port   int               `json:",omitzero"` // 0: the database's default
	DBName string            `json:",omitzero"`
	User   string            `json:",omitzero"` // the database user, for source rds-iam; else the data's username
	Params map[string]string `json:",omitzero"` // extra settings, e.g. sslmode
}

// Read is one question to a backend. Objects with equal reads share one answer.
type Read struct {
	Source string         `json:",omitzero"` // "vault", "aws-sts" or "rds-iam"
	Tenant string         `json:",omitzero"`
	Login  Login          `json:",omitzero"`
	Method string         `json:",omitzero"` // "GET", "PUT" or "POST"; "LIST" for the names of tenants
	Path   string         `json:",omitzero"` // cleaned, without leading "/" and "v1/", without query
	Query  url.Values     `json:",omitzero"` // parameters that stood behind "?" in secretPath
	Args   map[string]any `json:",omitzero"` // secretArgs, the body of a PUT or POST
	AWS    AWS            `json:",omitzero"` // what the sources aws-sts and rds-iam are asked for
}

// AWS is what a read without Vault asks AWS for. Its Read's Login has an Audience
// only: of the pod's token that is the proof; empty: none is needed. With
// NodeIdentity the SPC names a tenant only: the cluster's tenant bindings fill in
// all the rest.
type AWS struct {
	Identity      string            `json:",omitzero"` // PodIdentity, AgentIdentity or NodeIdentity
	RoleARN       string            `json:",omitzero"` // the role to assume
	SessionPolicy string            `json:",omitzero"` // compact JSON with sorted keys; empty: none
	SessionTags   map[string]string `json:",omitzero"`
	Region        string            `json:",omitzero"` // empty: the daemon's
	TTL           time.Duration     `json:",omitzero"` // life to ask for; 0: an hour
	Endpoint      string            `json:",omitzero"` // host:port of the database, for rds-iam
	User          string            `json:",omitzero"` // the database user, for rds-iam
}

// Subject names what is read, for people: the path in Vault, the role at AWS or
// the database.
func (r Read) Subject() string {
	return cmp.Or(r.Path, r.AWS.Endpoint, r.AWS.RoleARN, r.Source)
}

// ByNode reports whether the read proves the daemon's own identity and not the
// pod's, at AWS or in a login to Vault by way of AWS: then only the cluster's
// rules decide what it may be used for.
func (r Read) ByNode() bool {
	return r.AWS.Identity == NodeIdentity || r.Login.AWSIdentity == NodeIdentity
}

// Whose identity at AWS is used.
const (
	PodIdentity  = "pod"  // the pod's: its service account token, exchanged at STS
	NodeIdentity = "node" // the daemon's own
)

// Login is how the pod's identity becomes a Vault token, as the SPC says it.
// Zero fields mean the daemon's flags.
type Login struct {
	Method    string `json:",omitzero"` // "kubernetes" or "jwt": the same request, another default mount; "approle"; "aws"
	Address   string `json:",omitzero"`
	Namespace string `json:",omitzero"`
	Mount     string `json:",omitzero"` // auth mount path without "auth/"; empty: the flag (not for "approle" and "aws"), else the method's name
	Role      string `json:",omitzero"` // empty for "approle"
	Audience  string `json:",omitzero"` // which of the pod's tokens to send; empty: "vault", and none for "approle" and for AWSIdentity "node"

	AWSIdentity string `json:",omitzero"` // for "aws": "pod", by its token's exchange at STS, or "node", the daemon's own
	AWSRoleARN  string `json:",omitzero"` // for AWSIdentity "pod": the role that the token is exchanged for

	CACertPath, CADirectory       string `json:",omitzero"` // below the daemon's TLS directory
	ClientCertPath, ClientKeyPath string `json:",omitzero"` // below the daemon's TLS directory
	TLSServerName                 string `json:",omitzero"`
	SkipTLSVerify                 bool   `json:",omitzero"`
}

// ByToken reports whether the login sends a service account token of the pod, to
// Vault or, where it has no Method, to AWS itself.
func (l Login) ByToken() bool {
	return l.Method != AppRoleMethod && l.AWSIdentity != NodeIdentity && (l.Method != "" || l.Audience != "")
}

// TokenAudience returns the audience of that token.
func (l Login) TokenAudience() string { return cmp.Or(l.Audience, DefaultAudience) }
